"""``python -m tools.example_workflows.pictures``: a picture for every example workflow, drawn by the tiny FLUX.

Each repeats its workflow at small size, without ComfyUI and with other settings; the template browser shows it. Needs
diffusers, numpy and Pillow. Names of workflows after the command draw only these.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, token_grid
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.layout import TOKEN_PIXELS
from clear_core.sdedit import TileLayout, euler, noised, sdedit, sdedit_sigmas
from clear_core.weights import read_clear_file
from demo.experiments.guided_denoiser import Corrected, TowardsGuide
from demo.experiments.windows import window_file
from demo.job import decoded, make_noise
from demo.model import build_denoiser
from demo.sheet import as_image
from demo.tiny_flux.caption import encode_captions
from demo.tiny_flux.codec import encode

from .__main__ import PROJECT

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 512
BASE = 256
BASE_STEPS, STEPS = 16, 12
LABEL = "small demo model"
LIGHT, DARK = (255, 255, 255), (20, 22, 26)

MEADOW = (
    "a big red striped ball left, a small yellow plain cone middle, a big blue checked box right, meadow day, sun left"
)
SEA = "a big orange striped box left, a big white plain ball right, sea dusk, sun right"
SNOW = "a big purple checked cone left, a big green striped ball middle, snow day, sun right"
DESERT = "a big blue striped cone left, a small red plain ball middle, a big white checked box right, desert dusk"
NIGHT = "a big yellow striped ball left, a big red checked box right, meadow night, moon left"


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
                file = read_clear_file(window_file(spec))
                denoiser.transformer.load_state_dict(dict(file.tensors()), strict=False)
                apply_clear(denoiser.transformer, spec, spatial_weights=file.spatial_weights())
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
        self, caption: str, picture: Tensor, factor: float, strength: float, spec: ClearSpec = WINDOW, tile: int = 0
    ) -> Tensor:
        """A picture enlarged and redrawn with windows; in tiles of ``tile`` px unless that is 0."""
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


def text_to_image(studio: Studio) -> Image:
    middle = studio.larger(MEADOW, studio.small(MEADOW), 2, 0.3)
    large = studio.larger(MEADOW, middle, 1.5, 0.2)
    return labelled(with_insets(fitted(large), fitted(studio.small(MEADOW), SIDE // 3)), "1x, 3x")


def upscale_faithful(studio: Studio) -> Image:
    small = studio.small(SNOW)
    return labelled(
        halves(fitted(enlarged(small, 2)), fitted(studio.larger(SNOW, small, 2, 0.35))),
        "enlarged | redone, denoise 0.35",
    )


def upscale_paper(studio: Studio) -> Image:
    small = studio.small(SEA)
    return labelled(
        halves(fitted(enlarged(small, 2)), fitted(studio.larger(SEA, small, 2, 0.7, ClearSpec(8, 4)))),
        "enlarged | redone, denoise 0.7",
    )


def eight_k(studio: Studio) -> Image:
    from PIL import ImageDraw

    middle = studio.larger(DESERT, studio.small(DESERT), 2, 0.5)
    side, tile = 3 * middle.shape[-1] // 2, 448
    picture = fitted(studio.larger(DESERT, middle, 1.5, 0.15, tile=tile))
    draw = ImageDraw.Draw(picture)
    for one in TileLayout.of_pixels(token_grid(side, side, TOKEN_PIXELS), tile, tile, tile // 4).tiles:
        left, top, right, bottom = (
            round(TOKEN_PIXELS * tokens * SIDE / side)
            for tokens in (one.x, one.y, one.x + one.width, one.y + one.height)
        )
        draw.rectangle((left, top, right - 1, bottom - 1), outline=LIGHT, width=2)
    return labelled(picture, "tiles, blended at every step")


def controlnet(studio: Studio) -> Image:
    small = studio.small(NIGHT)
    large = studio.larger(NIGHT, studio.larger(NIGHT, small, 2, 0.3), 1.5, 0.2)
    return labelled(with_insets(fitted(large), fitted(small, SIDE // 3)), "larger, here without a ControlNet")


def guided_4k(studio: Studio) -> Image:
    small = studio.small(SNOW)
    return labelled(
        halves(fitted(studio.larger(SNOW, small, 4, 1.0)), fitted(studio.guided(SNOW, small, 4, 1.0, 2))),
        "from noise at 4x | with a guide",
    )


def guided_8k(studio: Studio) -> Image:
    middle = studio.guided(DESERT, studio.small(DESERT), 2, 0.7, 1)
    return labelled(
        halves(fitted(studio.larger(DESERT, middle, 2, 0.7)), fitted(studio.guided(DESERT, middle, 2, 0.7, 1))),
        "last stage alone | guided",
    )


def late_lora(studio: Studio) -> Image:
    small = studio.small(MEADOW)
    middle = studio.larger(MEADOW, small, 2, 0.3)
    large = studio.larger(MEADOW, middle, 1.5, 0.2)
    return labelled(with_insets(fitted(large), fitted(middle, SIDE * 2 // 3)), "2 stages, here without the LoRA")


def stock_nodes(studio: Studio) -> Image:
    small = studio.small(SEA)
    middle = studio.larger(SEA, small, 2, 0.3)
    large = studio.larger(SEA, middle, 1.5, 0.2)
    return labelled(with_insets(fitted(large), fitted(middle, SIDE * 2 // 3), fitted(small, SIDE // 3)), "1x, 2x, 3x")


def low_vram(studio: Studio) -> Image:
    denoiser = studio.model(MEADOW, ClearSpec(4))
    for weight in denoiser.transformer.parameters():
        weight.data = weight.to(torch.float8_e4m3fn).float()
    small = studio.small(MEADOW)
    return labelled(fitted(studio.larger(MEADOW, small, 2, 0.5, ClearSpec(4))), "weights rounded to fp8")


def side_by_side(studio: Studio) -> Image:
    from PIL import ImageDraw

    radius = 8
    picture = halves(
        fitted(from_noise(studio.model(MEADOW), SIDE)),
        fitted(from_noise(studio.model(MEADOW, ClearSpec(radius)), SIDE)),
    )
    x, y, reach = SIDE * 3 // 4 - 8, SIDE // 2, radius * TOKEN_PIXELS - 12
    ImageDraw.Draw(picture).ellipse((x - reach, y - reach, x + reach, y + reach), outline=LIGHT, width=2)
    return labelled(picture, "dense | CLEAR and its window")


PICTURES: Mapping[str, Callable[[Studio], Image]] = {
    "clear_text_to_image_1k_to_4k": text_to_image,
    "clear_upscale_faithful": upscale_faithful,
    "clear_upscale_as_in_the_paper": upscale_paper,
    "clear_8k_in_stages_with_tiles": eight_k,
    "clear_controlnet_tile_4k": controlnet,
    "clear_text_to_4k_with_guidance": guided_4k,
    "clear_8k_in_stages_with_guidance": guided_8k,
    "clear_2k_lora_in_late_stages": late_lora,
    "clear_stock_nodes_1k_to_4k": stock_nodes,
    "clear_low_vram_fp8": low_vram,
    "clear_dense_beside_clear": side_by_side,
}


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


@torch.inference_mode()
def main(names: Sequence[str]) -> None:
    began = time.perf_counter()
    studio = Studio()
    for name, draw in ((name, PICTURES[name]) for name in names or PICTURES):
        path = PROJECT / "example_workflows" / f"{name}.jpg"
        draw(studio).save(path, quality=88, optimize=True)
        print(f"{time.perf_counter() - began:4.0f} s  {path.relative_to(PROJECT)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
