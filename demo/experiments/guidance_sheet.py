"""The guidance laboratory's contact sheet: methods below each other, attentions and scenes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..sheet import INK, MARGIN, PAPER, as_image
from .guidance_methods import ABOVE, COMPARED, Attention, Method
from .guidance_record import drawn, shown
from .guidance_run import ABOVE_START, AT, BEYOND, Folder, several_things

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN: tuple[Method, ...] = (
    Method(),
    Method(schedule="decay"),
    Method(schedule="shift"),
    Method(schedule="shift", level=2),
    Method(schedule="constant", level=2),
    Method(0.5),
    Method(0.7),
    Method(0.7, "decay"),
    Method(0.7, "constant", 2),
    Method(0.5, hiflow=True),
)
COLUMNS: tuple[tuple[Attention, int], ...] = (
    ("dense", 0),
    ("plain", 0),
    ("distilled", 0),
    ("dense", 1),
    ("distilled", 1),
    ("distilled", 2),
    ("distilled", 3),
)
"""Attention, and index of a scene."""

THUMB, LABEL, LINE = 160, 112, 20
WORDS: dict[Attention, str] = {"dense": "dense", "plain": "windows as they are", "distilled": "distilled windows"}

Cell = Tensor | None


def sheet(folder: Folder, scenes: int, few: int) -> Image:
    """The pictures of ``AT`` px by method, and beside them those of ``BEYOND`` px of ``few`` scenes."""
    chosen = several_things(scenes)
    columns: list[tuple[Attention, int]] = [
        (attention, index) for attention, index in COLUMNS if index < (scenes if attention == "distilled" else few)
    ]
    grid: list[tuple[str, list[Cell]]] = [
        ("drawn", [drawn(chosen[index], AT) for _, index in columns]),
        ("base picture", [shown(folder.base(index, chosen[index]).latent) for _, index in columns]),
    ]
    for method in SHOWN:
        cells: list[Cell] = [
            shown(folder.large(index, chosen[index], attention, method))
            if attention == "distilled" or method in COMPARED[attention]
            else None
            for attention, index in columns
        ]
        grid.append((method.name, cells))
    heads = [f"{WORDS[attention]}, {index + 1}" for attention, index in columns]
    first = block(f"{AT} px", heads, grid)
    fewer = chosen[:few]
    large = [
        (
            method.name,
            [shown(folder.large(index, scene, "distilled", method, BEYOND)) for index, scene in enumerate(fewer)],
        )
        for method in ABOVE
    ]
    started = [shown(folder.large(index, scene, "distilled", ABOVE_START)) for index, scene in enumerate(fewer)]
    second = block(
        f"{BEYOND} px",
        [f"{WORDS['distilled']}, {index + 1}" for index in range(len(fewer))],
        [(f"its start, {AT} px", started), *large],
    )
    return beside([first, second])


def block(title: str, heads: Sequence[str], grid: Sequence[tuple[str, Sequence[Cell]]]) -> Image:
    """Pictures in a grid, with words above and at the left."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    step = THUMB + MARGIN // 3
    image = Image.new("RGB", (LABEL + len(heads) * step, 2 * LINE + len(grid) * step), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((4, 2), title, INK, font)
    for column, head in enumerate(heads):
        draw.text((LABEL + column * step, 2), head, INK, font)
    for row, (name, cells) in enumerate(grid):
        y = LINE + row * step
        draw.multiline_text((4, y + 4), name.replace(", ", "\n"), INK, font)
        for column, picture in enumerate(cells):
            if picture is not None:
                small = F.interpolate(picture[None], size=(THUMB, THUMB), mode="area")[0]
                image.paste(as_image(small), (LABEL + column * step, y))
    return image


def beside(blocks: Sequence[Image]) -> Image:
    """Blocks beside each other."""
    from PIL import Image

    whole = Image.new("RGB", (sum(each.width for each in blocks), max(each.height for each in blocks)), PAPER)
    x = 0
    for each in blocks:
        whole.paste(each, (x, 0))
        x += each.width
    return whole
