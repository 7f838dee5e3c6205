"""The contact sheet: the base picture, then a row per size with dense attention, windows and distilled windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .job import Row

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 12
LINE = 22
PAPER, INK = (250, 250, 250), (40, 40, 40)


def as_image(picture: Tensor) -> Image:
    """(3, H, W), 0 to 1, as a Pillow image."""
    from PIL import Image

    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def contact_sheet(rows: Sequence[Row], caption: str) -> Image:
    """All images at their own size, captioned.

    Args:
        rows: The base, then three of each size.
    """
    from PIL import Image, ImageDraw, ImageFont

    lines = [[rows[0]], *(list(rows[i : i + 3]) for i in range(1, len(rows), 3))]
    font = ImageFont.load_default(size=15)
    width = max(sum(row.picture.shape[2] + MARGIN for row in line) for line in lines) + MARGIN
    height = sum(line[0].picture.shape[1] + LINE + MARGIN for line in lines) + MARGIN + LINE
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN / 2), caption, INK, font)
    y = MARGIN + LINE
    for line in lines:
        x = MARGIN
        for row in line:
            note = row.name if row.psnr is None else f"{row.name}, {row.psnr:.1f} dB"
            draw.text((x, y), note, INK, font)
            sheet.paste(as_image(row.picture), (x, y + LINE))
            x += row.picture.shape[2] + MARGIN
        y += line[0].picture.shape[1] + LINE + MARGIN
    return sheet
