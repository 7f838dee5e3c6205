"""CLEARUpscale in a real ComfyUI: one stage is the stock graph, several are stages one after the other."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.golden import TOLERANCE, GoldenCase
from tests.host.support_comfy.pictures import picture, write_upscale_model
from tests.host.support_comfy.sampling import conditioning, relative_error, run_node
from tests.host.support_comfy.upscaling import lanczos, prompt, stock_graph
from tests.support.frozen import FROZEN

SOCKETS = ["image", "model", "positive", "vae"]
OPTIONAL = FROZEN["CLEARUpscale"]["inputs"][len(SOCKETS) :]


def test_inputs_are_in_their_frozen_order_and_explained(host, pack):
    node = host.stock("CLEARUpscale")
    inputs = node.INPUT_TYPES()
    assert list(inputs["required"]) == SOCKETS and list(inputs["optional"]) == OPTIONAL
    for _, options in [*inputs["required"].values(), *inputs["optional"].values()]:
        assert options.get("tooltip")
    assert inputs["optional"]["seed"][1]["control_after_generate"] is True
    assert list(node.RETURN_NAMES) == ["image", "latent", "info"]
    assert all(node.OUTPUT_TOOLTIPS)


def test_each_widget_reaches_the_run_by_its_name(host, pack):
    """Inputs travel by name into these values; a widget without a field would be ignored without a word."""
    run, stage = (import_module(f"{pack.__name__}.nodes.host.upscale.{name}") for name in ("run", "stage"))
    settings, sockets = ({field.name for field in fields(kind)} for kind in (stage.StageSettings, stage.StageInputs))
    plan = {field.name for field in fields(run.PlanSettings)}
    assert settings | sockets | plan | {"image"} == {*SOCKETS, *OPTIONAL}
    defaults = {**vars(stage.StageSettings()), **vars(run.PlanSettings())}
    widgets = host.stock("CLEARUpscale").INPUT_TYPES()["optional"]
    assert defaults == {name: widgets[name][1]["default"] for name in defaults}
    inputs = host.stock("CLEARUpscaleStage").INPUT_TYPES()
    single = {*inputs["required"], *inputs["optional"]}
    # A stage has one model, and the guidance that the plan gave it.
    guide = {"guide", "guide_strength", "guide_level"}
    sockets -= {"later_model"}
    assert single == settings | sockets | guide | {"image", "item", "number", "height", "width", "denoise", "seed"}


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "dense"])
@pytest.mark.parametrize("custom", [True, False], ids=["SamplerCustomAdvanced", "KSampler"])
def test_one_stage_is_the_stock_graph_bit_for_bit(host, vae, upscale, tiny_flux, clear_node, windows, custom):
    model = clear_node(tiny_flux(), radius=3) if windows else tiny_flux()
    image = picture(96, 128)
    out, latent, _ = upscale(image, model, seed=11)
    expected, expected_latent = stock_graph(host, vae, image, model, (192, 256), custom=custom, seed=11)
    assert out.shape == (1, 192, 256, 3)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)


@pytest.mark.parametrize(
    "values",
    [
        {"denoise": 0.7, "steps": 2, "sampler": "dpm_2"},
        {"cfg": 2.5, "sampler": "dpmpp_2m"},
        {"shift": 1.5, "denoise": 1.0},
    ],
    ids=str,
)
def test_one_stage_is_the_stock_graph_with_other_widgets_too(host, vae, upscale, tiny_flux, values):
    model, image = tiny_flux(), picture(64, 80)
    widgets = {("sampler_name" if name == "sampler" else name): value for name, value in values.items()}
    _, latent, _ = upscale(image, model, negative=prompt(5), **widgets)
    assert torch.equal(latent, stock_graph(host, vae, image, model, (128, 160), **values)[1])


def test_golden_run_through_the_core_of_the_node(pack, golden_flux, clear_node):
    """The published SDEdit run, by the function that every stage denoises with."""
    stage_module = import_module(f"{pack.__name__}.nodes.host.upscale.stage")
    progress_module = import_module(f"{pack.__name__}.nodes.host.upscale.progress")
    case = GoldenCase.load("sdedit_local_r8")
    model = clear_node(golden_flux, **case.widgets)
    space = golden_flux.model.latent_format
    latent = space.process_out(case.tensors["image_latent"])
    size = (latent.shape[2] * 8, latent.shape[3] * 8)
    strength = case.facts["strength"]
    stage = stage_module.Stage(1, size, size, strength, case.facts["noise_seed"])
    settings = stage_module.StageSettings(steps=int(case.facts["steps"] * strength), shift=case.facts["shift"])
    inputs = stage_module.StageInputs(model, conditioning(*case.text, case.facts["guidance"]), None)
    progress = progress_module.StageProgress(progress_module.RunPlan((stage,), settings.steps), stage)
    with torch.inference_mode():
        out = stage_module.denoise(latent, inputs, stage, settings, settings.tiles(inputs, stage), progress)
    assert relative_error(space.process_in(out), case.tensors["output_latent"]) < TOLERANCE


def test_several_stages_are_single_ones_in_a_row(upscale, tiny_flux, clear_node):
    model, image = clear_node(tiny_flux(), radius=3), picture(40, 56)
    out, latent, info = upscale(image, model, upscale_by=4.0, seed=5, stage_denoise="0.7, 0.4")
    first, _, _ = upscale(image, model, upscale_by=2.0, seed=5, denoise=0.7)
    second, second_latent, _ = upscale(first, model, upscale_by=2.0, seed=6, denoise=0.4)
    assert out.shape == (1, 160, 224, 3)
    assert torch.equal(out, second) and torch.equal(latent, second_latent)
    assert "stage 2: 112 x 80 to 224 x 160" in info and "denoise 0.4, seed 6" in info


def test_an_upscale_model_enlarges_before_each_stage(host, pack, upscale, tiny_flux):
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel, UpscaleModelLoader

    write_upscale_model(host.base / "models" / "upscale_models" / "small_4x.safetensors")
    (upscale_model,) = run_node(UpscaleModelLoader, model_name="small_4x.safetensors")
    image = picture(40, 56)
    with torch.inference_mode():
        (larger,) = run_node(ImageUpscaleWithModel, upscale_model=upscale_model, image=image)
    assert larger.shape == (1, 160, 224, 3)
    resized = lanczos(host, larger, (80, 112))
    out, latent, info = upscale(image, tiny_flux(), upscale_model=upscale_model)
    expected, expected_latent, _ = upscale(resized, tiny_flux(), upscale_by=1.0)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)
    assert "upscale model" in info


@pytest.mark.parametrize(
    ("height", "width", "upscale_by"), [(62, 190, 2.0), (125, 125, 1.0), (48, 192, 2.0), (37, 50, 1.5)], ids=str
)
def test_any_size(upscale, tiny_flux, clear_node, height, width, upscale_by):
    out, latent, info = upscale(
        picture(height, width), clear_node(tiny_flux(), radius=3), upscale_by=upscale_by, steps=1
    )
    size = (round(height * upscale_by), round(width * upscale_by))
    padded = [-(-side // 16) * 16 for side in size]
    assert out.shape[1:3] == size and list(latent.shape[2:]) == [side // 8 for side in padded]
    assert ("padded" in info) == (list(size) != padded)
    assert out.isfinite().all()


def test_a_batch_is_its_items(upscale, tiny_flux, clear_node):
    """The first item's noise is the first drawn, so it comes out as it does alone."""
    model, images = clear_node(tiny_flux(), radius=3), picture(48, 64, batch=2)
    both, latents, _ = upscale(images, model)
    alone, alone_latent, _ = upscale(images[:1], model)
    assert both.shape[0] == 2 and relative_error(latents[:1], alone_latent) < 1e-5
    assert relative_error(both[:1], alone) < 1e-4 and relative_error(both[1:], alone) > 1e-2


def test_a_mask_keeps_what_is_outside_it(host, upscale, tiny_flux):
    image = picture(64, 64)
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 16:64] = 1
    out, _, _ = upscale(image, tiny_flux(), mask=mask)
    enlarged = lanczos(host, image, (128, 128))
    outside = mask[0] == 0
    assert torch.equal(out[:, outside], enlarged[:, outside])
    assert relative_error(out[:, ~outside], enlarged[:, ~outside]) > 1e-2


def test_a_mask_is_the_stock_latent_mask(host, vae, upscale, tiny_flux):
    model, image = tiny_flux(), picture(64, 64)
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 16:64] = 1
    expected = stock_graph(host, vae, image, model, (128, 128), mask=mask)[1]
    assert torch.equal(upscale(image, model, mask=mask)[1], expected)


def test_the_same_seed_gives_the_same_picture_and_another_another(upscale, tiny_flux):
    model, image = tiny_flux(), picture(48, 48)
    first, again, other = (upscale(image, model, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_model_sampling_patch_upstream_wins_and_is_named(host, vae, upscale, tiny_flux):
    image = picture(48, 48)
    (patched,) = run_node(host.stock("ModelSamplingAuraFlow"), model=tiny_flux(), shift=1.5)
    _, latent, info = upscale(image, patched, shift=3.0)
    _, expected, _ = upscale(image, tiny_flux(), shift=1.5)
    assert torch.equal(latent, expected)
    assert "shift: ModelSamplingDiscreteFlow of a node upstream, shift 1.5" in info
    usual = upscale(image, tiny_flux(), shift=3.0)
    family = upscale(image, tiny_flux(), shift=0.0)
    assert "shift: 3" in family[2].splitlines() and torch.equal(family[1], usual[1])
    assert not torch.equal(family[1], expected)


def test_a_familys_recipe_has_its_own_shift_from_noise_at_high_resolution(upscale, tiny_flux, host_part, monkeypatch):
    """FLUX.1: 3, and 6 for a guided stage from pure noise above 2 megapixels; 16 tokens stand for 8192 here."""
    families = host_part("model.family").FLUX1
    monkeypatch.setattr(type(families), "is_hires", lambda self, tokens: tokens > 16)
    model, image = tiny_flux(), picture(32, 32)
    _, latent, info = upscale(image, model, upscale_by=4.0, stage_denoise="1.0", guide="shift")
    assert "shift: 3, then 6" in info.splitlines()
    middle, _, _ = upscale(image, model, denoise=1.0, shift=3.0, guide="shift")
    _, alone, said = upscale(middle, model, denoise=1.0, shift=6.0, seed=1, guide="shift")
    assert torch.equal(latent, alone) and "shift: 6" in said.splitlines()
    for other in ({"denoise": 0.9, "guide": "shift"}, {"denoise": 1.0, "guide": "decay"}, {"denoise": 1.0}):
        assert "shift: 3" in upscale(middle, model, **other)[2].splitlines()


def test_info_names_what_decides_the_picture(upscale, tiny_flux, clear_node):
    image = picture(48, 48)
    with Recorder() as log:
        _, _, info = upscale(image, clear_node(tiny_flux(), radius=5), seed=77, color_fix="wavelet")
    assert "CLEAR, radius 5" in info and "seed 77" in info and "color fix: wavelet" in info
    assert not [line for line in log.messages() if "CLEAR" in line]
    with Recorder() as log:
        _, _, info = upscale(image, tiny_flux())
    assert "dense" in info and [line for line in log.messages() if "CLEARAttention" in line]


def test_only_a_model_without_clear_is_warned_about(upscale, tiny_flux, clear_node):
    """Also where the settings have the word "dense" in them."""
    with Recorder() as log:
        upscale(picture(48, 48), clear_node(tiny_flux(), radius=5, backend="dense"), steps=1)
    assert not [line for line in log.messages() if "CLEARAttention" in line]


def test_color_fix_keeps_the_coarse_colours(host, upscale, tiny_flux):
    image = picture(96, 96)
    enlarged = lanczos(host, image, (192, 192))
    plain, fixed = (upscale(image, tiny_flux(), color_fix=fix)[0] for fix in ("none", "wavelet"))
    drift = [float((out - enlarged).mean(dim=(1, 2)).abs().max()) for out in (plain, fixed)]
    assert drift[1] < drift[0] / 3


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"cfg": 2.0}, ["cfg is 2", "negative"]),
        ({"tile_width": 64, "tile_height": 64}, ["tile_overlap", "128"]),
        ({"upscale_by": 4.0, "stage_denoise": "0.7; 1"}, ["stage_denoise", "commas"]),
    ],
    ids=str,
)
def test_bad_values_end_in_one_sentence(upscale, tiny_flux, inputs, words):
    with pytest.raises(ValueError) as refused:
        upscale(picture(64, 64), tiny_flux(), **inputs)
    sentence = str(refused.value)
    assert all(word in sentence for word in words) and "\n" not in sentence and sentence.endswith(".")
