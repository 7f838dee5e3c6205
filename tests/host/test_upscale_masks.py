"""Under a mask, only what comes out of it is sampled: no step for an empty one, no tile without a masked pixel."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from PIL import Image

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.upscaling import lanczos, load_extras

HEIGHT, WIDTH = 64, 160
TILES = {"tile_width": 64, "tile_height": 64, "tile_overlap": 16}
"""Three tiles side by side, from the columns 0, 48 and 96."""


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Gets an entry for every sampling of the host, and for every picture that is decoded."""
    import comfy.sample
    import comfy.sd

    entries = []
    for module, name in ((comfy.sample, "sample"), (comfy.sd.VAE, "decode")):
        original = getattr(module, name)

        def watched(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            entries.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)
    return entries


class Watched:
    """A clone of a model that counts its calls; by a function, since an object's attributes are kept for each tile."""

    def __init__(self, model: Any) -> None:
        made: list[int] = []

        def call(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            made.append(1)
            return executor(*args, **kwargs)

        self.made = made
        self.model = model.clone()
        self.model.add_wrapper_with_key("apply_model", "test", call)

    @property
    def calls(self) -> int:
        return len(self.made)


def mask_of(*columns: tuple[int, int]) -> torch.Tensor:
    """One mask for each range of columns."""
    mask = torch.zeros(len(columns), HEIGHT, WIDTH)
    for number, (start, stop) in enumerate(columns):
        mask[number, :, start:stop] = 1
    return mask


@pytest.fixture
def empty_mask(host, pack) -> torch.Tensor:
    """What Load Image gives as the mask of a picture without transparency."""
    Image.new("RGB", (8, 8)).save(host.base / "input" / "opaque.png")
    return run_node(host.stock("LoadImage"), image="opaque.png")[1]


@pytest.mark.parametrize("upscale_by", [1.0, 2.0, 4.0], ids=str)
def test_an_empty_mask_samples_nothing_and_says_so(host, vae, upscale, tiny_flux, counted, empty_mask, upscale_by):
    assert empty_mask.shape == (1, 64, 64)
    image = picture(24, 40)
    with Recorder() as log:
        out, latent, info = upscale(image, tiny_flux(), mask=empty_mask, upscale_by=upscale_by, color_fix="wavelet")
    assert counted == []
    expected = image
    for factor in range(1, int(upscale_by).bit_length()):
        expected = lanczos(host, expected, (24 * 2**factor, 40 * 2**factor))
    assert torch.equal(out, expected)
    padded = torch.nn.functional.pad(expected.movedim(-1, 1), (0, -40 % 16, 0, -24 % 16), "reflect").movedim(1, -1)
    if upscale_by == 1.0:
        with torch.inference_mode():
            assert torch.allclose(latent, vae.encode(padded), atol=1e-4)
    assert len([line for line in log.messages() if "mask" in line and "nothing is sampled" in line]) == 1
    assert "mask: empty, so that nothing is sampled" in info


@pytest.mark.parametrize(("columns", "tiles"), [((0, 40), 1), ((40, 56), 2), ((56, 104), 3), ((100, 110), 2)], ids=str)
def test_tiles_without_a_masked_pixel_are_not_sampled(upscale, tiny_flux, clear_node, columns, tiles):
    """And everything else is bit for bit what it is when all of them are."""
    image, model = picture(HEIGHT, WIDTH), Watched(clear_node(tiny_flux(), radius=3))
    every = Watched(model.model)
    every.model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    inputs = {"mask": mask_of(columns), "upscale_by": 1.0, "steps": 2, **TILES}
    out, latent, info = upscale(image, model.model, **inputs)
    calls = model.calls
    expected, expected_latent, whole_info = upscale(image, every.model, **inputs)
    assert (calls, every.calls) == (2 * tiles, 2 * 3)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)
    assert ("not sampled" in info) == (tiles < 3) and "not sampled" not in whole_info
    outside = mask_of(columns)[0] == 0
    assert torch.equal(out[:, outside], image[:, outside]) and not torch.equal(out, image)


def test_a_batch_needs_the_tiles_of_all_its_masks(upscale, tiny_flux):
    model = Watched(tiny_flux())
    inputs = {"mask": mask_of((0, 30), (140, 160)), "upscale_by": 1.0, "steps": 1, **TILES}
    out, _, info = upscale(picture(HEIGHT, WIDTH, batch=2), model.model, **inputs)
    assert model.calls == 2 and "3 tiles of 64 x 64 px, overlap 16, 1 of them" in info and len(out) == 2


@pytest.mark.parametrize("who", ["calc_cond_batch", "predict_noise", "DifferentialDiffusion"])
def test_all_tiles_are_sampled_for_who_sees_the_whole_frame(host, upscale, tiny_flux, who):
    """A cache that compares whole predictions, and a mask that grows from step to step."""
    model = Watched(tiny_flux())
    seen = []
    if who == "DifferentialDiffusion":
        load_extras(host, "nodes_differential_diffusion.py", who)
        (other,) = run_node(host.stock(who), model=model.model)
    else:
        other = model.model.clone()
        other.add_wrapper_with_key(who, "test", lambda executor, *args: seen.append(who) or executor(*args))
    upscale(picture(HEIGHT, WIDTH), other, mask=mask_of((0, 30)), upscale_by=1.0, steps=2, **TILES)
    assert model.calls == 2 * 3 and (seen or who == "DifferentialDiffusion")


def test_the_forecast_counts_the_tiles_that_are_sampled(pack, upscale, tiny_flux):
    forecast = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.forecast")
    upscale(picture(HEIGHT, WIDTH), tiny_flux(), mask=mask_of((0, 30)), upscale_by=1.0, steps=2, **TILES)
    assert forecast._evaluations["euler"] == pytest.approx(1.0)
