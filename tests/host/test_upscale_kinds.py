"""CLEARUpscale on models of other families than FLUX.1: units, whole frames against stock nodes, odd sizes, batches."""

from __future__ import annotations

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.kinds import enlarged
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import relative_error, run_node
from tests.host.support_comfy.test_only_models import KINDS, OTHERS, TinyKind

ALL = {**KINDS, **OTHERS}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, host, pack) -> TinyKind:
    return KINDS[request.param]


@pytest.fixture
def enlarge(host):
    """``enlarge(kind, model, image, **inputs)`` is picture, samples and info of CLEARUpscale."""
    return lambda *args, **inputs: enlarged(host, *args, **inputs)


@pytest.mark.parametrize("name", ALL)
def test_units_are_the_models_own(host, pack, host_part, name):
    """By the table, and by the general rule where the table does not know the model."""
    kind = ALL[name]
    if not kind.is_known:
        pytest.skip(f"this ComfyUI has no {kind.supported}")
    module = host_part("model.picture_model")
    model, vae = kind.build(), kind.vae()
    known = module.picture_model(model, vae)
    assert known.kind in module.PICTURE_KINDS and known.channels == kind.channels
    assert (known.units.latent_pixels, known.units.pixels) == (kind.cell, kind.unit)
    assert known.units.has_frames == kind.has_frames
    model.model.model_config.unet_config["image_model"] = "somebody's own"
    other = module.picture_model(model, vae)
    assert other.kind is None and other.units.latent_pixels == kind.cell
    assert other.units.token_cells * other.units.unit_tokens == (4 if name == "SDXL" else kind.unit // kind.cell)


def test_a_model_without_windows_is_no_cause_for_a_warning(kind, enlarge):
    with Recorder() as log:
        enlarge(kind, kind.build(), picture(32, 32), steps=1)
    assert not [line for line in log.messages() if "CLEAR" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "by"), [(37, 61, 2.0), (50, 70, 1.37), (17, 33, 4.0)], ids=str)
def test_odd_sizes_are_padded_to_the_models_units(kind, enlarge, height, width, by):
    out, samples, info = enlarge(kind, kind.build(), picture(height, width), upscale_by=by, steps=1)
    size = (round(height * by), round(width * by))
    padded = [-(-side // kind.unit) * kind.unit for side in size]
    assert out.shape[1:3] == size and out.isfinite().all()
    assert list(samples.shape[-2:]) == [side // kind.cell for side in padded]
    assert ("padded" in info) == (list(size) != padded)


@pytest.mark.slow
def test_a_batch_is_its_items(kind, enlarge):
    """Also with a VAE for videos, which takes a batch for the frames of one."""
    model, images = kind.build(), picture(48, 64, batch=2)
    both, samples, info = enlarge(kind, model, images)
    alone, alone_samples, _ = enlarge(kind, model, images[:1])
    assert both.shape[0] == samples.shape[0] == 2 and "pictures: 2" in info
    assert relative_error(samples[:1], alone_samples) < 1e-5
    assert relative_error(both[:1], alone) < 1e-4 and relative_error(both[1:], alone) > 1e-2


@pytest.mark.slow
def test_two_stages_are_one_after_the_other_and_a_guide_holds(kind, enlarge):
    model, image = kind.build(), picture(32, 32)
    inputs = {"guide": "constant", "guide_strength": "1", "steps": 1}
    out, samples, info = enlarge(kind, model, image, upscale_by=4.0, stage_denoise="0.6, 0.4", **inputs)
    middle, _, _ = enlarge(kind, model, image, denoise=0.6, **inputs)
    expected, expected_samples, _ = enlarge(kind, model, middle, denoise=0.4, **{**inputs, "seed": 4})
    assert torch.equal(samples, expected_samples) and torch.equal(out, expected)
    assert info.count("guided (constant") == 2
    free, _, _ = enlarge(kind, model, image, upscale_by=4.0, stage_denoise="0.6, 0.4", steps=1)
    assert not torch.equal(free, out)


def test_more_than_one_frame_is_refused_by_number(enlarge, host, pack):
    kind = KINDS["Qwen-Image"]

    class Frames:
        """A VAE that says nothing about itself and makes a film of every picture."""

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return kind.vae().encode(pixels).repeat(1, 1, 5, 1, 1)

    with pytest.raises(ValueError) as refused:
        enlarge(kind, kind.build(), picture(32, 32), vae=Frames())
    sentence = str(refused.value)
    assert "latent of 5 frames" in sentence and "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("wrong", ["channels", "factor", "kind"])
def test_a_vae_of_another_family_is_refused_before_any_work(host, pack, enlarge, name, wrong):
    kind, vae = KINDS[name], KINDS[name].vae()
    if wrong == "channels":
        vae.latent_channels = 20
    elif wrong == "factor":
        vae.cell = 2 * kind.cell
    else:
        vae.latent_dim = 5 - vae.latent_dim
    words = {
        "channels": ["20 channels", f"of {kind.channels} channels"],
        "factor": [f"{2 * kind.cell} x {2 * kind.cell} px"],
        "kind": ["for pictures" if kind.has_frames else "for videos"],
    }
    with pytest.raises(ValueError) as refused:
        enlarge(kind, kind.build(), picture(32, 32), vae=vae)
    assert all(word in str(refused.value) for word in [*words[wrong], "VAE"]), refused.value


@pytest.mark.parametrize("shift", [1.5, 6.0])
def test_a_shift_is_the_stock_nodes(host, pack, enlarge, shift):
    """Where the model's noise levels have one; SDXL's have none, and that is said before any work."""
    for name, node in (("SD3.5", "ModelSamplingSD3"), ("Z-Image", "ModelSamplingAuraFlow")):
        kind, image = KINDS[name], picture(32, 32)
        (shifted,) = run_node(host.stock(node), model=kind.build(), shift=shift)
        _, expected, said = enlarge(kind, shifted, image)
        _, samples, info = enlarge(kind, kind.build(), image, shift=shift)
        assert torch.equal(samples, expected)
        assert f"shift: {shift:g}" in info and "of a node upstream" in said
    kind = KINDS["SDXL"]
    with pytest.raises(ValueError, match=r"shift is .* have no shift; set shift to 0") as refused:
        enlarge(kind, kind.build(), picture(32, 32), shift=shift)
    assert "\n" not in str(refused.value)


def test_pixels_are_a_latent_too(host, pack, enlarge):
    kind = OTHERS["Chroma Radiance"]
    if not kind.is_known:
        pytest.skip("this ComfyUI has no Chroma Radiance")
    model, image = kind.build(), picture(40, 72)
    out, samples, _ = enlarge(kind, model, image, steps=1)
    assert out.shape == (1, 80, 144, 3) and samples.shape == (1, 3, 80, 144)
    tiled, _, info = enlarge(kind, model, image, steps=1, tile_width=64, tile_height=64, tile_overlap=16)
    assert "tiles of 64 x 64 px" in info and tiled.isfinite().all() and not torch.equal(tiled, out)
