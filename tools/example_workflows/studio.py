"""What the pictures of the example workflows are drawn with: the tiny FLUX, and a frame with a line of text.

Needs diffusers, numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, token_grid
from clear_core.integrations.diffusers import apply_clear, load_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import TileLayout, euler, noised, sdedit, sdedit_sigmas
from demo.experiments.guided_denoiser import Corrected, TowardsGuide
from demo.experiments.windows import window_file
from demo.job import decoded, make_noise
from demo.model import build_denoiser
from demo.sheet import as_image
from demo.tiny_flux.caption import encode_captions
from demo.tiny_flux.codec import encode

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 512
BASE = 256
BASE_STEPS, STEPS = 16, 12
LABEL = "small demo model"
LIGHT, DARK = (255, 255, 255), (20, 22, 26)

WINDOW = ClearSpec(8)


class Studio:
    """The tiny FLUX, without windows and with each window's distilled weights; loads every model once."""

    def __init__(self) -> None:
        self.models: dict[ClearSpec | None, FluxDenoiser] = {}
        self.drawn: dict[str, Tensor] = {}

    def model(self, caption: str, spec: ClearSpec | None = None) -> FluxDenoiser:
        """The model with a caption: without windows, or with a window and its weights."""
        if spec not in self.models:
            denoiser = build_denoiser()
            if spec is not None:
                loaded = load_clear(denoiser.transformer, window_file(spec))
                apply_clear(denoiser.transformer, spec, spatial_weights=loaded.spatial_weights)
            self.models[spec] = denoiser
        prompt, pooled = encode_captions([caption])
        return replace(self.models[spec], prompt_embeds=prompt, pooled=pooled)

    def small(self, caption: str) -> Tensor:
        """(3, 256, 256): the base picture of a caption, by the model without windows."""
        if caption not in self.drawn:
            self.drawn[caption] = from_noise(self.model(caption), BASE)
        return self.drawn[caption]

    def guided(self, caption: str, picture: Tensor, factor: int, strength: float, level: int) -> Tensor:
        """A picture enlarged and redrawn with windows, guided by itself (I-Max's shift schedule)."""
        denoiser = self.model(caption, WINDOW)
        noise = make_noise(picture.shape[-1] * factor)
        start = encode(enlarged(picture, factor)[None])
        sigmas = sdedit_sigmas(STEPS, strength)
        towards = TowardsGuide(start, sigmas.tolist(), "shift", level)
        return decoded(euler(Corrected(denoiser, towards), noised(start, noise, float(sigmas[0])), sigmas))

    def larger(
        self,
        caption: str,
        picture: Tensor,
        factor: float,
        strength: float,
        spec: ClearSpec | None = WINDOW,
        tile: int = 0,
    ) -> Tensor:
        """A picture enlarged and redrawn; without windows if ``spec`` is None, in tiles unless ``tile`` px is 0."""
        denoiser = self.model(caption, spec)
        noise = make_noise(round(picture.shape[-1] * factor))
        start = encode(enlarged(picture, factor)[None])
        redo = in_tiles(denoiser, tile_layout(start, tile)) if tile else denoiser
        return decoded(sdedit(redo, start, noise, steps=STEPS, strength=strength))


def from_noise(denoiser: FluxDenoiser, side: int) -> Tensor:
    """(3, side, side) from text alone."""
    return decoded(euler(denoiser, make_noise(side), sdedit_sigmas(BASE_STEPS, 1.0)))


def enlarged(picture: Tensor, factor: float) -> Tensor:
    """(3, H, W) enlarged without a model."""
    return F.interpolate(picture[None], scale_factor=factor, mode="bicubic", antialias=False)[0].clamp(0, 1)


def tile_layout(latent: Tensor, tile: int) -> TileLayout:
    """Tiles of ``tile`` px over a latent."""
    return TileLayout.of_pixels(token_grid(*latent.shape[2:]), tile, tile, tile // 4)


def in_tiles(denoiser: FluxDenoiser, layout: TileLayout) -> Callable[[Tensor, float], Tensor]:
    """A denoiser whose prediction is blended from tiles, as CLEAR Upscale does at every step."""

    def blended(latent: Tensor, sigma: float) -> Tensor:
        flow = torch.zeros_like(latent)
        for tile in layout.tiles:
            index = (..., *tile.latents)
            flow[index] += layout.weight(tile) * denoiser(latent[index].contiguous(), sigma)
        return flow

    return blended


def fitted(picture: Tensor, side: int = SIDE) -> Image:
    """A square picture at another size."""
    from PIL import Image

    return as_image(picture).resize((side, side), Image.Resampling.LANCZOS)


def halves(left: Image, right: Image) -> Image:
    """The left half of one picture and the right half of another, with a line between."""
    from PIL import ImageDraw

    both = right.copy()
    both.paste(left.crop((0, 0, SIDE // 2, SIDE)))
    ImageDraw.Draw(both).line((SIDE // 2, 0, SIDE // 2, SIDE), LIGHT, 3)
    return both


def with_insets(picture: Image, *insets: Image) -> Image:
    """Smaller pictures over the upper right corner, each over the one before, all with a white border."""
    from PIL import ImageOps

    for inset in insets:
        framed = ImageOps.expand(inset, 3, LIGHT)
        picture.paste(framed, (SIDE - framed.width, 0))
    return picture


def labelled(picture: Image, text: str) -> Image:
    """The picture with a line at the bottom: its text, and the model."""
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size=17)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, SIDE - 28, SIDE, SIDE), DARK)
    draw.text((10, SIDE - 24), text, LIGHT, font)
    draw.text((SIDE - 10, SIDE - 24), LABEL, LIGHT, font, anchor="ra")
    return picture
