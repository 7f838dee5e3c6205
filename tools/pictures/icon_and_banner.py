"""Draws the pack's icon and banner: ``python -m tools.pictures.icon_and_banner``, from the project's folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clear_core import ClearSpec
from clear_core.inspection.canvas import CIRCLE, INK, MUTED, PAPER, QUERY, UNSEEN, WINDOW

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
OVERSAMPLING = 4

ICON = (400, 400)  # The registry's largest icon.
BANNER = (1260, 540)  # The registry's 21:9.


def draw_tokens(
    draw: ImageDraw.ImageDraw, spec: ClearSpec, query: tuple[float, float], cell: float, size: tuple[int, int]
) -> None:
    """Tokens over the whole picture, those in the query's window coloured, and the circle of the window.

    Args:
        spec: Window radius.
        query: Middle of the query in px from the left and the top.
        cell: Side of a token in px.
        size: Width and height of the picture in px.
    """
    gap = 0.11 * cell
    columns, rows = (
        range(-int(middle / cell) - 1, int((end - middle) / cell) + 2) for middle, end in zip(query, size, strict=True)
    )
    for dy in rows:
        for dx in columns:
            seen = spec.sees(dy, dx)
            color = QUERY if dx == dy == 0 else WINDOW if seen else UNSEEN
            left, top = query[0] + (dx - 0.5) * cell, query[1] + (dy - 0.5) * cell
            draw.rounded_rectangle((left + gap, top + gap, left + cell - gap, top + cell - gap), 0.16 * cell, color)
    around = spec.radius * cell
    draw.ellipse(
        (query[0] - around, query[1] - around, query[0] + around, query[1] + around),
        outline=CIRCLE,
        width=max(1, round(0.14 * cell)),
    )


def canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[int, int]]:
    """An empty picture at :data:`OVERSAMPLING` times its size, which smooths circle and corners."""
    large = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
    picture = Image.new("RGB", large, PAPER)
    return picture, ImageDraw.Draw(picture), large


def icon() -> Image.Image:
    """The icon of the registry."""
    picture, draw, (width, height) = canvas(ICON)
    draw_tokens(draw, ClearSpec(4), (width / 2, height / 2), width / 9.6, (width, height))
    return picture.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The banner of the registry."""
    picture, draw, (width, height) = canvas(BANNER)
    draw_tokens(draw, ClearSpec(8), (0.785 * width, 0.5 * height), height / 19, (width, height))
    fade = Image.linear_gradient("L").rotate(90).point([min(255, max(0, 2 * level - 90)) for level in range(256)])
    paper = Image.new("RGB", picture.size, PAPER)
    picture = Image.composite(picture, paper, fade.resize(picture.size))
    draw = ImageDraw.Draw(picture)
    left = 0.05 * width
    draw.text((left, 0.30 * height), "CLEAR for FLUX", INK, ImageFont.load_default(0.148 * height))
    draw.text((left, 0.51 * height), "2K to 8K pictures in ComfyUI,", MUTED, ImageFont.load_default(0.066 * height))
    draw.text((left, 0.60 * height), "in one piece, without seams", MUTED, ImageFont.load_default(0.066 * height))
    return picture.resize(BANNER, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.png", optimize=True)
