"""``python -m tools.example_workflows.pictures``: a picture for every example workflow, drawn by the tiny FLUX.

Each repeats its workflow at small size, without ComfyUI and with other settings; the template browser shows it. Needs
diffusers, numpy and Pillow. Names of workflows after the command draw only these.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from clear_core import ClearSpec, token_grid
from clear_core.layout import TOKEN_PIXELS
from clear_core.sdedit import TileLayout

from .__main__ import PROJECT
from .studio import LIGHT, SIDE, Studio, enlarged, fitted, from_noise, halves, labelled, with_insets

if TYPE_CHECKING:
    from PIL.Image import Image

MEADOW = (
    "a big red striped ball left, a small yellow plain cone middle, a big blue checked box right, meadow day, sun left"
)
SEA = "a big orange striped box left, a big white plain ball right, sea dusk, sun right"
SNOW = "a big purple checked cone left, a big green striped ball middle, snow day, sun right"
DESERT = "a big blue striped cone left, a small red plain ball middle, a big white checked box right, desert dusk"
NIGHT = "a big yellow striped ball left, a big red checked box right, meadow night, moon left"
COAST = "a small white plain ball left, a big orange checked cone middle, sea day, sun left"
DUNES = "a big green checked box left, a big purple plain ball right, desert day, sun right"
GLADE = "a small orange striped cone left, a big blue plain ball right, meadow dusk, sun left"
ICE = "a big red plain box left, a small yellow striped ball middle, snow dusk, sun right"


def text_to_image(studio: Studio) -> Image:
    middle = studio.larger(MEADOW, studio.small(MEADOW), 2, 0.3)
    large = studio.larger(MEADOW, middle, 1.5, 0.2)
    return labelled(with_insets(fitted(large), fitted(studio.small(MEADOW), SIDE // 3)), "1x, 3x")


def upscale_faithful(studio: Studio, words: str = "enlarged | redone, denoise 0.35") -> Image:
    small = studio.small(SNOW)
    return labelled(halves(fitted(enlarged(small, 2)), fitted(studio.larger(SNOW, small, 2, 0.35))), words)


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


def without_windows(caption: str, studio: Studio) -> Image:
    small = studio.small(caption)
    large = studio.larger(caption, studio.larger(caption, small, 2, 0.2, None), 1.5, 0.1, None, tile=512)
    return labelled(with_insets(fitted(large), fitted(small, SIDE // 3)), "1x, 3x, no windows")


def refine(studio: Studio) -> Image:
    small = studio.small(GLADE)
    larger = enlarged(small, 2)
    return labelled(halves(fitted(larger), fitted(studio.larger(GLADE, small, 2, 0.2, None))), "enlarged | denoise 0.2")


PICTURES: Mapping[str, Callable[[Studio], Image]] = {
    "clear_text_to_image_1k_to_4k": text_to_image,
    "clear_upscale_faithful": upscale_faithful,
    "clear_upscale_faithful.app": partial(upscale_faithful, words="an app: picture, size, strength"),
    "clear_upscale_as_in_the_paper": upscale_paper,
    "clear_8k_in_stages_with_tiles": eight_k,
    "clear_controlnet_tile_4k": controlnet,
    "clear_text_to_4k_with_guidance": guided_4k,
    "clear_8k_in_stages_with_guidance": guided_8k,
    "clear_2k_lora_in_late_stages": late_lora,
    "clear_stock_nodes_1k_to_4k": stock_nodes,
    "clear_low_vram_fp8": low_vram,
    "clear_dense_beside_clear": side_by_side,
    "clear_z_image_turbo_to_4k": partial(without_windows, COAST),
    "clear_qwen_image_to_4k": partial(without_windows, MEADOW),
    "clear_krea_2_to_4k": partial(without_windows, DUNES),
    "clear_flux2_klein_to_4k": partial(without_windows, ICE),
    "clear_sdxl_to_4k": partial(without_windows, SEA),
    "clear_refine_after_esrgan": refine,
}


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
