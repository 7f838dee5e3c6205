"""The VAE's tiles lie on latent cells: with a VAE of plain means, tiles are the whole picture, wherever they end.

The host's own VAE class cuts and adds them. A cell that the tiles' grid misses would be a NaN, one off it another mean.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.host.support_comfy.kinds import enlarged
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.test_only_models import KINDS

SIDES = (64, 96, 128, 192, 272, 304, 320, 400, 448, 528, 640, 720, 1024)
"""Of tiles, in px; every one can be set at some widget."""


class Means(torch.nn.Module):
    """A latent cell is the mean of its pixels and a pixel its cell; what is left of a cell at the edge is dropped."""

    def __init__(self, channels: int, cell: int) -> None:
        super().__init__()
        self.channels, self.cell = channels, cell

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        pool = F.avg_pool2d if pixels.ndim == 4 else F.avg_pool3d
        latent = pool(pixels, (1,) * (pixels.ndim - 4) + (self.cell, self.cell)).mean(1, keepdim=True)
        return latent.expand(-1, self.channels, *latent.shape[2:])

    def decode(self, latent: torch.Tensor, **options: Any) -> torch.Tensor:
        pixels = latent[:, :3].repeat_interleave(self.cell, -1)
        return pixels.repeat_interleave(self.cell, -2)


@pytest.fixture
def mean_vae(vae):
    """``mean_vae(channels, cell, has_frames)`` is the host's VAE around :class:`Means`."""

    def make(channels: int, cell: int, has_frames: bool) -> Any:
        made = copy.copy(vae)
        made.first_stage_model = Means(channels, cell)
        made.process_input = made.process_output = lambda values: values
        made.latent_channels, made.latent_dim = channels, 3 if has_frames else 2
        made.downscale_ratio = made.upscale_ratio = cell
        if has_frames:
            made.not_video = False
            made.downscale_ratio = (lambda frames: max(0, math.floor((frames + 3) / 4)), cell, cell)
            made.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), cell, cell)
            made.downscale_index_formula = made.upscale_index_formula = (4, cell, cell)
        return made

    return make


@torch.inference_mode()
@pytest.mark.parametrize("has_frames", [False, True], ids=["pictures", "videos"])
@pytest.mark.parametrize("cell", [1, 8, 16, 32])
def test_tiles_are_the_whole_picture(core_part, host_part, mean_vae, cell, has_frames):
    work, vae = host_part("upscale.vae_work"), mean_vae(4, cell, has_frames)
    units = core_part("frame_units").FrameUnits(cell, 1, has_frames=has_frames)
    cut = 0
    for height, width in ((96, 96), (224, 320), (352, 464), (832, 672)):
        stage = core_part("sdedit").Stage(1, (height, width), (height, width), 0.5, 0, units=units)
        image = torch.rand(1, *stage.padded, 3, generator=torch.Generator().manual_seed(width))
        whole = work.encode(vae, image, 0, stage)
        pixels = work.decode(vae, whole, 0, stage)
        for side in SIDES:
            tile = work.tile_side(vae, stage, side, (0, 0))
            if not tile:
                continue
            cut += 1
            assert tile <= max(side, 4 * cell)
            latent = work.encode(vae, image, tile, stage)
            assert latent.shape == whole.shape
            torch.testing.assert_close(latent, whole, rtol=0, atol=1e-5, msg=lambda m, side=side: f"{side} px: {m}")
            torch.testing.assert_close(work.decode(vae, latent, tile, stage), pixels, rtol=0, atol=1e-5)
    assert cut > 15


@pytest.mark.parametrize(("widget", "set_to", "used"), [("vae_tile_size", 448, 448), ("tile_width", 432, 416)])
def test_tiles_whose_edges_were_between_cells(host, pack, mean_vae, widget, set_to, used):
    """464 px of FLUX.2 in tiles of 448 px, an eighth of them overlap, were NaN in every pixel; its cells have 16 px."""
    kind, image = KINDS["FLUX.2"], picture(232, 232)
    vae = mean_vae(kind.channels, kind.cell, kind.has_frames)
    out, samples, info = enlarged(host, kind, kind.build(), image, vae=vae, steps=1, **{widget: set_to})
    assert f"VAE in tiles of {used} px" in info, info
    assert samples.isfinite().all() and out.isfinite().all() and out.shape == (1, 464, 464, 3)


@pytest.mark.parametrize("part", ["upscale_model", "encode", "decode", "model"])
def test_nan_is_told_with_the_part_that_made_it(host, pack, mean_vae, monkeypatch, part):
    """A VAE or a model in half precision may overflow; the picture would be black."""
    kind = KINDS["FLUX.2"]
    vae, model = mean_vae(kind.channels, kind.cell, kind.has_frames), kind.build().clone()
    enlarger = None
    if part == "upscale_model":
        extras = importlib.import_module("comfy_extras.nodes_upscale_model").ImageUpscaleWithModel
        monkeypatch.setattr(extras, "execute", lambda model, image: (image.repeat_interleave(2, 1) * math.nan,))
        enlarger = object()
    elif part == "model":
        model.add_wrapper_with_key("apply_model", "nan", lambda executor, *args, **kw: executor(*args, **kw) * math.nan)
    else:
        made = getattr(vae.first_stage_model, part)
        monkeypatch.setattr(vae.first_stage_model, part, lambda *args, **kw: made(*args, **kw) * math.nan)
    name = {
        "upscale_model": "the picture that upscale_model made",
        "encode": "the latent that vae made in stage 1",
        "decode": "the picture that vae made in stage 1",
        "model": "the latent that model made in stage 1",
    }[part]
    with pytest.raises(ValueError, match=rf"^{name} has NaN or infinite values; expected .*\.$"):
        enlarged(host, kind, model, picture(64, 64), vae=vae, steps=1, upscale_model=enlarger)


def test_out_of_memory_in_the_vae_names_smaller_tiles_of_its_own(core_part, host_part, mean_vae):
    """Half the side that did not fit, on cells; the smallest tiles and another pack's VAE cannot be made smaller."""
    advice, vae = host_part("upscale.memory_advice").vae_advice, mean_vae(4, 16, False)
    units = core_part("frame_units").FrameUnits(16, 1)

    def sides(longest: int, tile: int) -> str:
        return advice(vae, core_part("sdedit").Stage(1, (64, longest), (64, longest), 0.5, 0, units=units), tile)

    assert sides(8192, 0).startswith("set vae_tile_size to 1024, or")
    assert sides(8192, 2048).startswith("set vae_tile_size to 1024, or")
    assert sides(8192, 1024).startswith("set vae_tile_size to 512, or")
    assert sides(1008, 0).startswith("set vae_tile_size to 448, or")
    assert sides(8192, 64) == sides(64, 0) == "lower upscale_by"
    stage = core_part("sdedit").Stage(1, (64, 64), (2048, 2048), 0.5, 0, units=units)
    assert advice(object(), stage, 0) == "lower upscale_by"
