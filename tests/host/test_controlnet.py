"""ControlNets beside a CLEAR model: the model takes their residuals, and their own blocks attend in its windows."""

from __future__ import annotations

import importlib
import math
import threading
from typing import Any

import pytest
import torch
from support_comfy.boot import Recorder
from support_comfy.controlnets import oracle_control, write_inpaint_file, write_union_file, write_xlabs_file
from support_comfy.oracle import window_mask, with_oracle_attention
from support_comfy.sampling import conditioning, relative_error

TEXT = 7
SIGMA = 0.6
RADIUS = 8
WIDE = 100
LAYOUTS = ("xlabs", "union")


class PlainVAE:
    """Means of 8 x 8 pixels in 16 mixtures of the colours."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        mix = torch.linspace(-1, 1, 3 * 16).reshape(3, 16)
        return torch.nn.functional.avg_pool2d((pixels[..., :3] @ mix).movedim(-1, 1), 8)


@pytest.fixture(scope="module")
def control_files(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    return {"xlabs": write_xlabs_file(folder / "xlabs.safetensors", seed=5),
            "union": write_union_file(folder / "union.safetensors", seed=6),
            "inpaint": write_inpaint_file(folder / "inpaint.safetensors", seed=7)}


@pytest.fixture
def load(control_files):
    """``load(layout)`` is a ControlNet as the stock loader gives it, with its Union type set."""
    import comfy.controlnet

    def load_file(layout: str) -> Any:
        control = comfy.controlnet.load_controlnet(str(control_files[layout]))
        if layout == "union":
            control.set_extra_arg("control_type", [1])
        return control
    return load_file


@pytest.fixture
def applied(host):
    """``applied(control, *conds)`` is what the stock node ControlNetApplyAdvanced makes of each conditioning."""
    from nodes import ControlNetApplyAdvanced

    def apply(control: Any, *conds: list, strength: float = 0.8, start: float = 0.0, end: float = 1.0,
              seed: int = 3) -> Any:
        image = torch.rand(1, 96, 120, 3, generator=torch.Generator().manual_seed(seed))
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(
            conds[0], conds[-1], control, image, strength, start, end,
            vae=PlainVAE() if control.latent_format else None)
        return (positive, negative) if len(conds) > 1 else positive
    return apply


def noise(height: int, width: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 2, text: int = TEXT) -> list:
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))


def masks_for(grid: tuple[int, int], radius: int) -> dict[int, torch.Tensor]:
    """Without and with the token that a Union ControlNet puts before the text."""
    return {text + grid[0] * grid[1]: window_mask(text, grid, 0, radius) for text in (TEXT, TEXT + 1)}


def oracle(model: Any, grid: tuple[int, int], radius: int, scale: float | None = None) -> Any:
    return with_oracle_attention(model, window_mask(TEXT, grid, 0, radius), scale)


def run(model: Any, latent: torch.Tensor, positive: list, negative: list, cfg: float = 1.0, steps: int = 2,
        callback: Any = None) -> torch.Tensor:
    """A whole sampling run, as KSampler does it."""
    import comfy.sample

    with torch.inference_mode():
        return comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 4), steps, cfg, "euler", "simple",
                                   positive, negative, latent, denoise=0.7, disable_pbar=True, callback=callback)


@pytest.mark.parametrize("height, width", [(24, 36), (22, 30)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_radius_past_the_grid_is_stock(tiny_flux, clear_node, predict, load, applied, layout, height, width):
    model, x, positive = tiny_flux(), noise(height, width), applied(load(layout), prompt())
    stock = predict(model, x, SIGMA, positive)
    assert relative_error(stock, predict(model, x, SIGMA, prompt())) > 1e-2
    assert relative_error(predict(clear_node(model, radius=WIDE, controlnet="on"), x, SIGMA, positive), stock) < 1e-5


# XLabs' layout cannot take an odd latent in the host.
@pytest.mark.parametrize("layout, height, width", [("xlabs", 24, 36), ("union", 24, 36), ("union", 19, 41)])
def test_windows_are_the_methods(tiny_flux, clear_node, predict, load, applied, layout, height, width):
    model, x, positive = tiny_flux(), noise(height, width), applied(load(layout), prompt())
    grid = (math.ceil(height / 2), math.ceil(width / 2))
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    # The ControlNet's window must matter, or the comparison says nothing of it.
    assert relative_error(predict(oracle(model, grid, RADIUS), x, SIGMA, positive), expected) > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ntk_and_scale_are_the_models(tiny_flux, clear_node, predict, load, applied, layout):
    from comfy.ldm.flux.layers import EmbedND

    model, x, positive, grid = tiny_flux(), noise(24, 36), applied(load(layout), prompt()), (12, 18)

    def scale(text: int) -> float:
        return math.sqrt(math.log(text + 12 * 18, 4608) / 128)

    expected = oracle(model, grid, RADIUS, scale(TEXT))
    expected.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * 7.0, [16, 56, 56]))
    patched = clear_node(model, radius=RADIUS, controlnet="on", ntk_factor=7.0, proportional_attention="on")
    with oracle_control(masks_for(grid, RADIUS), scale(TEXT + (layout == "union")), ntk=7.0):
        wanted = predict(expected, x, SIGMA, positive)
    assert relative_error(predict(patched, x, SIGMA, positive), wanted) < 1e-5
    with oracle_control(masks_for(grid, RADIUS)):
        assert relative_error(predict(expected, x, SIGMA, positive), wanted) > 1e-4


def test_positions_of_another_node_turn_the_ntk_factor_off_for_both(tiny_flux, clear_node, predict, load, applied):
    class OtherEmbedder(torch.nn.Module):
        def __init__(self, base: torch.nn.Module):
            super().__init__()
            self.base = base

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.base(ids)

    model, x, positive = tiny_flux(), noise(24, 36), applied(load("union"), prompt())
    foreign, key = model.clone(), "diffusion_model.pe_embedder"
    foreign.add_object_patch(key, OtherEmbedder(model.get_model_object(key)))
    with oracle_control(masks_for((12, 18), RADIUS)):
        expected = predict(oracle(model, (12, 18), RADIUS), x, SIGMA, positive)
    patched = clear_node(foreign, radius=RADIUS, controlnet="on", ntk_factor=7.0)
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["off", "auto"])
def test_off_and_a_small_frame_are_stock_bit_for_bit(tiny_flux, clear_node, load, applied, setting, layout):
    """The residuals are the stock ControlNet's to the last bit, and so is what the windowed model makes of them."""
    seen: list[dict] = []

    def watch(executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, control: Any, *args: Any,
              **kw: Any) -> Any:
        seen.append({name: list(each) for name, each in control.items()})
        return executor(x, t, c_concat, c_crossattn, control, *args, **kw)

    model, latent = tiny_flux(), noise(24, 36)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    positive, negative = applied(load(layout), prompt(), prompt(8))
    run(model, latent, positive, negative, steps=1)
    run(clear_node(model, radius=RADIUS, controlnet=setting), latent, positive, negative, steps=1)
    stock, ours = seen
    assert len(stock["input"]) == 19
    for name in stock:
        assert all(torch.equal(left, right) for left, right in zip(stock[name], ours[name], strict=True)
                   if left is not None)
    run(clear_node(model, radius=RADIUS, controlnet="on"), latent, positive, negative, steps=1)
    assert not torch.equal(seen[-1]["input"][0], stock["input"][0])


@pytest.mark.parametrize("left_out", [dict(min_tokens=217), dict(end_percent=0.2), dict(start_percent=0.7)], ids=str)
def test_where_the_model_goes_without_the_window_so_does_the_controlnet(tiny_flux, clear_node, predict, load, applied,
                                                                         left_out):
    model, x, positive = tiny_flux(), noise(24, 36), applied(load("union"), prompt())
    patched = clear_node(model, radius=RADIUS, controlnet="on", **left_out)
    assert relative_error(predict(patched, x, SIGMA, positive), predict(model, x, SIGMA, positive)) < 1e-5


def test_auto_begins_where_pictures_are_hires(pack, tiny_flux, clear_node, predict, load, applied, monkeypatch):
    """Above 8192 tokens, of which the tests of CLEARAttention make sure; above 200 here, to be quick."""
    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.clear_core.rope"), "HIRES_TOKENS", 200)
    model, positive = tiny_flux(), applied(load("union"), prompt())
    for width, explicit, other in ((40, "off", "on"), (42, "on", "off")):
        x = noise(20, width)
        auto = predict(clear_node(model, radius=3), x, SIGMA, positive)
        assert torch.equal(auto, predict(clear_node(model, radius=3, controlnet=explicit), x, SIGMA, positive))
        assert not torch.equal(auto, predict(clear_node(model, radius=3, controlnet=other), x, SIGMA, positive))


def test_a_chain_of_two_with_strength_and_a_time_range(tiny_flux, clear_node, load, applied):
    """Two layouts in a row, the second one for a part of the run alone; batch 2, cfg 3."""
    model, latent, grid = tiny_flux(), noise(24, 36, batch=2), (12, 18)
    conds = applied(load("xlabs"), prompt(), prompt(8), strength=0.5)
    positive, negative = applied(load("union"), *conds, strength=0.9, start=0.5, seed=9)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = run(oracle(model, grid, RADIUS), latent, positive, negative, cfg=3.0, steps=3)
        one = run(oracle(model, grid, RADIUS), latent, *conds, cfg=3.0, steps=3)
        always = run(oracle(model, grid, RADIUS), latent, *applied(load("union"), *conds, strength=0.9, seed=9),
                     cfg=3.0, steps=3)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(run(patched, latent, positive, negative, cfg=3.0, steps=3), expected) < 1e-5
    assert relative_error(one, expected) > 1e-4 and relative_error(always, expected) > 1e-4


def test_masked_conditioning_with_different_controlnets(tiny_flux, clear_node, predict, load, applied):
    model, x, grid = tiny_flux(), noise(24, 36), (12, 18)
    left = torch.zeros(1, 24, 36)
    left[..., :15] = 1
    positive = applied(load("xlabs"), prompt()) + applied(load("union"), prompt(8))
    positive[0][1]["mask"], positive[1][1]["mask"] = left, 1 - left
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5


def test_an_area_has_the_windows_of_its_own_grid(tiny_flux, clear_node, predict, load, applied):
    model, x = tiny_flux(), noise(32, 36)
    positive = applied(load("union"), prompt())
    positive[0][1].update(area=(24, 20, 4, 8), strength=1.0)
    with oracle_control(masks_for((12, 10), 4)):
        expected = predict(oracle(model, (12, 10), 4), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=4, controlnet="on"), x, SIGMA, positive), expected) < 1e-5


def test_methods_kept_on_the_object_lead_to_the_copy(tiny_flux, clear_node, predict, load, applied):
    """As tiled samplers keep them."""
    model, x, positive, grid = tiny_flux(), noise(24, 36), applied(load("xlabs"), prompt()), (12, 18)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    placed = positive[0][1]["control"]
    placed.get_control = placed.get_control
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert placed.get_control.__self__ is placed


def attributes(control: Any) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            for name, value in vars(control).items()}


def modules(control: Any) -> dict[str, Any]:
    return dict(control.control_model.named_modules()) | {"": vars(control.control_model).keys() | {}}


@pytest.mark.parametrize("how", ["done", "interrupt", "error"])
def test_a_run_leaves_nothing_behind(tiny_flux, clear_node, load, applied, how):
    import comfy.model_management
    import comfy.samplers

    class Stop(Exception):
        pass

    def end(step: int, *_: Any) -> None:
        if how == "interrupt":
            comfy.model_management.interrupt_current_processing()
        if how == "error":
            raise Stop

    model, latent, control = tiny_flux(), noise(24, 36), load("union")
    positive, negative = applied(control, prompt(), prompt(8))
    placed = positive[0][1]["control"]
    stock = run(model, latent, positive, negative)
    before, before_modules = attributes(placed), modules(control)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    ended = {"done": (), "interrupt": comfy.model_management.InterruptProcessingException, "error": Stop}[how]
    if ended:
        with pytest.raises(ended):
            run(patched, latent, positive, negative, callback=end)
    else:
        assert relative_error(run(patched, latent, positive, negative), stock) > 1e-4
    comfy.model_management.interrupt_current_processing(False)
    assert modules(control) == before_modules
    # Only a run that ends well is tidied by the host.
    left = {} if how == "done" else {"timestep_range", "model_sampling_current"}
    after = attributes(placed)
    assert {name for name in before if after[name] is not before[name] and after[name] != before[name]} <= set(left)
    assert positive[0][1]["control"] is placed and placed.control_model is control.control_model
    assert torch.equal(run(model, latent, positive, negative), stock)


def test_the_runs_conditioning_is_put_back_when_it_ends_early(tiny_flux, clear_node, load, applied):
    import comfy.samplers

    class Failing(comfy.samplers.Sampler):
        def sample(self, guider: Any, *_: Any, **__: Any) -> torch.Tensor:
            self.inside = guider.conds["positive"][0]["control"]
            raise KeyError

    sampler, positive = Failing(), applied(load("union"), prompt())
    guider = comfy.samplers.CFGGuider(clear_node(tiny_flux(), radius=RADIUS, controlnet="on"))
    guider.inner_set_conds({"positive": positive})
    with pytest.raises(KeyError):
        guider.sample(noise(24, 36), torch.zeros(1, 16, 24, 36), sampler, torch.tensor([SIGMA, 0.0]), seed=0)
    placed = positive[0][1]["control"]
    assert sampler.inside is not placed and sampler.inside.control_model is not placed.control_model
    assert guider.conds["positive"][0]["control"] is placed


def test_clones_for_other_cards_get_the_window_and_the_tile(pack, tiny_flux, clear_node, load, applied):
    """ComfyUI keeps a copy of a ControlNet for every further card, and asks the one at hand for it."""
    import comfy.samplers

    class Caught(comfy.samplers.Sampler):
        def sample(self, guider: Any, sigmas: Any, extra_args: Any, callback: Any, noise: torch.Tensor,
                   *_: Any, **__: Any) -> torch.Tensor:
            self.control = guider.conds["positive"][0]["control"]
            return noise

    sampler, positive, card = Caught(), applied(load("union"), prompt()), torch.device("meta")
    placed = positive[0][1]["control"]
    # Deep copies in the host; whether it is asked for does not depend on that.
    clones = {card: placed.copy()}
    clones[card].multigpu_clones = {}
    guider = comfy.samplers.CFGGuider(clear_node(tiny_flux(), radius=RADIUS, controlnet="on"))
    guider.inner_set_conds({"positive": positive})
    frame = noise(24, 36)
    placed.multigpu_clones = clones
    guider.sample(frame, torch.zeros(1, 16, 24, 36), sampler, torch.tensor([SIGMA, 0.0]), seed=0)
    clone = sampler.control.multigpu_clones[card]
    assert clone is not clones[card] and type(clone.control_model) is type(sampler.control.control_model)
    assert type(clone.control_model) is not type(clones[card].control_model)
    crop = importlib.import_module(f"{pack.__name__}.nodes.host.crop")
    tile = crop.crop_control(sampler.control, slice(8, 20), slice(0, 16), frame)
    assert tile.multigpu_clones[card].cond_hint_original.shape[-2:] == (12 * 8, 16 * 8)
    assert tile.multigpu_clones[card].control_model is clone.control_model


def test_another_sampler_may_use_the_controlnet_at_the_same_time(tiny_flux, clear_node, load, applied):
    """A stock run and a CLEAR run meet at every step, each with its own model and the same ControlNet file."""
    stock_model, clear_model = tiny_flux(), tiny_flux()
    control, latent = load("union"), noise(24, 36)
    patched = clear_node(clear_model, radius=RADIUS, controlnet="on")
    # The stock node makes a copy for every use; copies share the model.
    uses = [applied(control, prompt(), prompt(8)) for _ in range(2)]
    expected = [run(model, latent, *use, steps=4) for model, use in zip((stock_model, patched), uses)]
    meet, results = threading.Barrier(2, timeout=120), [None, None]

    def sample(place: int, model: Any) -> None:
        try:
            results[place] = run(model, latent, *uses[place], steps=4, callback=lambda *_: meet.wait())
        except BaseException:
            meet.abort()
            raise

    # Both are on the CPU already: what is loaded in threads is the host's own matter.
    threads = [threading.Thread(target=sample, args=each) for each in enumerate((stock_model, patched))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize("kind", ["xlabs", "union", "inpaint"])
def test_tiles_get_their_share_of_the_hint_and_their_places(pack, tiny_flux, clear_node, predict, load, applied, kind):
    """In the upscale node's tiles a ControlNet sees the hint and the places of the tile, and the frame's scale."""
    tiles = importlib.import_module(f"{pack.__name__}.nodes.host.tiles")
    # A model that hands on the residuals alone, so that tiles of one call can be told apart.
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(executor: Any, x: torch.Tensor, t: Any, c_concat: Any, c_crossattn: Any, control: Any, *args: Any,
              **kw: Any) -> torch.Tensor:
        calls.append((x, control["input"][0]))
        return x * 0.5

    import comfy.utils

    model, x, control = tiny_flux(), noise(24, 40), load(kind)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    positive = applied(control, prompt())
    placed = positive[0][1]["control"]
    if kind == "inpaint":
        placed.extra_concat_orig = [torch.rand(1, 1, 96, 120, generator=torch.Generator().manual_seed(4)).round()]
    patched = clear_node(model, radius=4, controlnet="on", proportional_attention="on")
    layout = tiles.TileLayout((12, 20), (8, 12), 2)
    predict(tiles.TiledModel(layout, lambda *_: None).install(patched), x, SIGMA, positive)
    tiled = list(calls)
    assert len(tiled) == len(layout.tiles) >= 4
    scale = math.sqrt(math.log(TEXT + (kind == "union") + 12 * 20, 4608) / 128)
    hint = comfy.utils.common_upscale(placed.cond_hint_original, 320, 192, "nearest-exact", "center")
    masks = [comfy.utils.common_upscale(mask, 40, 24, "nearest-exact", "center") for mask in placed.extra_concat_orig]
    for tile, (part, residual) in zip(layout.tiles, tiled):
        rows, columns = tile.latents
        calls.clear()
        cropped = applied(control, prompt())
        of_tile = cropped[0][1]["control"]
        of_tile.cond_hint_original = hint[..., rows.start * 8: rows.stop * 8, columns.start * 8: columns.stop * 8]
        of_tile.extra_concat_orig = [mask[..., rows, columns] for mask in masks]
        with oracle_control(masks_for((8, 12), 4), scale, offset=(tile.y, tile.x)):
            predict(model, x[..., rows, columns], SIGMA, cropped)
        ((_, expected),) = calls
        assert torch.equal(part, x[..., rows, columns])
        assert relative_error(residual, expected) < 1e-5


def test_a_controlnet_left_dense_is_named_once(pack, tiny_flux, clear_node, predict, load, applied, monkeypatch):
    control = importlib.import_module(f"{pack.__name__}.nodes.host.control")
    assert control.DENSE_TOKENS == 16384
    monkeypatch.setattr(control, "DENSE_TOKENS", 200)
    model, positive = tiny_flux(), applied(load("union"), prompt())
    for setting, width, lines in (("off", 42, 1), ("off", 40, 0), ("auto", 42, 1), ("on", 42, 0)):
        patched = clear_node(model, radius=3, controlnet=setting)
        with Recorder() as log:
            for _ in range(2):
                predict(patched, noise(20, width), SIGMA, positive)
        named = [line for line in log.messages() if "CLEAR" in line]
        assert len(named) == lines
        if lines:
            assert "2 double and 1 single blocks, Union" in named[0] and "210" in named[0]


def test_a_controlnet_that_is_no_flux_is_left_as_it_is(tiny_flux, clear_node, predict, load, applied):
    """In a chain, the FLUX ControlNet before it still gets the window."""
    from comfy.controlnet import ControlBase

    class Other(ControlBase):
        control_model = torch.nn.Identity()

        def get_control(self, x: torch.Tensor, t: Any, cond: Any, batch: int, options: Any) -> Any:
            before = self.previous_controlnet.get_control(x, t, cond, batch, options)
            seen.append(self.control_model)
            return {"input": [each * 0.5 for each in before["input"]], "output": before["output"]}

        def get_models(self) -> list:
            return self.previous_controlnet.get_models()

        def copy(self) -> Any:
            made = Other()
            self.copy_to(made)
            return made

    seen: list[Any] = []
    model, x, grid = tiny_flux(), noise(24, 36), (12, 18)
    control = Other()
    control.set_previous_controlnet(applied(load("xlabs"), prompt())[0][1]["control"])
    positive = prompt()
    positive[0][1].update(control=control, control_apply_to_uncond=True)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    with Recorder() as log:
        for _ in range(2):
            assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert all(each is Other.control_model for each in seen)
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "Identity" in lines[0]


@pytest.mark.parametrize("channels", [32, 96], ids=["canny and depth", "fill"])
def test_models_with_more_input_channels_have_the_methods_windows(tiny_flux, clear_node, predict, channels):
    model, x, positive, grid = tiny_flux(in_channels=channels, out_channels=16), noise(24, 36), prompt(), (12, 18)
    positive[0][1]["concat_latent_image"] = noise(24, 36, seed=7)
    expected = predict(oracle(model, grid, 4), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=4), x, SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(oracle(model, grid, 4), x, SIGMA, prompt()), expected) > 1e-3


def test_a_canny_or_depth_lora_widens_the_models_input(host, tiny_flux, clear_node, predict):
    """As the files of Black Forest Labs are: a LoRA that gives the model a second latent, before CLEAR or after it."""
    import comfy.sd

    generator = torch.Generator().manual_seed(11)
    lora = {"img_in.lora_A.weight": torch.randn(4, 128, generator=generator) * 0.3,
            "img_in.lora_B.weight": torch.randn(256, 4, generator=generator) * 0.3,
            "img_in.lora_B.bias": torch.randn(256, generator=generator) * 0.1,
            "single_blocks.0.norm.key_norm.scale": 1 + 0.1 * torch.randn(128, generator=generator),
            "single_blocks.0.linear1.lora_A.weight": torch.randn(4, 256, generator=generator) * 0.1,
            "single_blocks.0.linear1.lora_B.weight": torch.randn(1792, 4, generator=generator) * 0.1}

    def with_lora(model: Any) -> Any:
        return comfy.sd.load_lora_for_models(model, None, dict(lora), 0.9, 0)[0]

    model, x, positive, grid = tiny_flux(), noise(24, 36), prompt(), (12, 18)
    positive[0][1]["concat_latent_image"] = noise(24, 36, seed=7)
    expected = predict(oracle(with_lora(model), grid, 4), x, SIGMA, positive)
    for patched in (clear_node(with_lora(model), radius=4), with_lora(clear_node(model, radius=4))):
        assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(oracle(with_lora(model), grid, 4), x, SIGMA, prompt()), expected) > 1e-3
