"""The guidance laboratory's contact sheet: methods below each other, scenes and attentions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..sheet import INK, MARGIN, PAPER, as_image
from .guidance_methods import ABOVE, METHODS, Attention, Method
from .guidance_record import drawn, shown
from .guidance_run import AT, BEYOND, Folder, several_things

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN: tuple[Method, ...] = (
    Method(),
    Method(schedule="decay"),
    Method(schedule="shift"),
    Method(schedule="constant"),
    Method(schedule="constant", level=2),
    Method(0.5),
    Method(0.7),
    Method(0.7, "decay"),
    Method(0.7, "shift"),
    Method(0.5, hiflow=True),
)
COLUMNS: tuple[tuple[Attention, int], ...] = (
    ("dense", 0),
    ("plain", 0),
    ("distilled", 0),
    ("dense", 1),
    ("distilled", 1),
    ("distilled", 2),
)
"""Attention, and index of a scene."""

THUMB, LABEL, LINE = 176, 150, 20
WORDS: dict[Attention, str] = {"dense": "dense", "plain": "windows as they are", "distilled": "distilled windows"}

Cell = Tensor | None


def sheet(folder: Folder, scenes: int, above: int) -> Image:
    """The pictures of ``AT`` px by method, then those of ``BEYOND`` px of ``above`` scenes."""
    chosen = several_things(scenes)
    columns: list[tuple[Attention, int]] = [(attention, index) for attention, index in COLUMNS if index < scenes]
    grid: list[tuple[str, list[Cell]]] = [
        ("drawn", [drawn(chosen[index], AT) for _, index in columns]),
        ("base picture", [shown(folder.base(index, chosen[index]).latent) for _, index in columns]),
    ]
    for method in SHOWN:
        cells: list[Cell] = [
            shown(folder.at(index, chosen[index], attention, method)) if method in METHODS[attention] else None
            for attention, index in columns
        ]
        grid.append((method.name, cells))
    heads = [f"{WORDS[attention]}, {index + 1}" for attention, index in columns]
    first = block(f"{AT} px", heads, grid)
    large = [
        (f"scene {i + 1}", [shown(folder.beyond(i, scene, method)) for method in ABOVE])
        for i, scene in enumerate(chosen[:above])
    ]
    return stacked([first, block(f"{BEYOND} px", [method.name for method in ABOVE], large)])


def block(title: str, heads: Sequence[str], grid: Sequence[tuple[str, Sequence[Cell]]]) -> Image:
    """Pictures in a grid, with words above and at the left."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    step = THUMB + MARGIN // 3
    image = Image.new("RGB", (LABEL + len(heads) * step, 2 * LINE + len(grid) * step), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((4, 2), title, INK, font)
    for column, head in enumerate(heads):
        draw.text((LABEL + column * step, 2), head.replace(", level 1", ""), INK, font)
    for row, (name, cells) in enumerate(grid):
        y = LINE + row * step
        draw.multiline_text((4, y + 4), name.replace(", ", "\n"), INK, font)
        for column, picture in enumerate(cells):
            if picture is not None:
                small = F.interpolate(picture[None], size=(THUMB, THUMB), mode="area")[0]
                image.paste(as_image(small), (LABEL + column * step, y))
    return image


def stacked(blocks: Sequence[Image]) -> Image:
    """Blocks below each other."""
    from PIL import Image

    whole = Image.new("RGB", (max(each.width for each in blocks), sum(each.height for each in blocks)), PAPER)
    y = 0
    for each in blocks:
        whole.paste(each, (0, y))
        y += each.height
    return whole
