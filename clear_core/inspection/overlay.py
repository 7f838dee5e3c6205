"""The window over the user's own image, true to scale (Pillow is imported where it is used)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..layout import TOKEN_PIXELS
from ..spec import ClearSpec
from .canvas import CIRCLE, INK, OVERSAMPLING, PAPER, QUERY, SUMMARISED, UNSEEN, WINDOW, around, font

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

# Opacity of white over the part that a query does not see, and over the part that it sees pooled only.
VEIL_UNSEEN = 0.72
VEIL_OVERVIEW = 0.42

LINE = 3
SMALLEST_QUERY = 9
FRAME_COLOR = (200, 206, 214)
OVERVIEW = (SUMMARISED, (206, 229, 221))


@dataclass(frozen=True)
class Overlay:
    """An image with the window of its middle token.

    Attributes:
        image: RGB.
        scale: Px of ``image`` for one px of the frame.
        centre: (x, y) of the query in ``image``.
        radius: Radius of the circle in px of ``image``: ``16 * spec.radius * scale``.
    """

    image: Image.Image
    scale: float
    centre: tuple[float, float]
    radius: float


def draw_overlay(
    size: tuple[int, int],
    spec: ClearSpec | None,
    *,
    picture: Image.Image | None = None,
    width: int = 1000,
    height: int = 1000,
) -> Overlay:
    """Draw the window over an image.

    Args:
        size: (height, width) in px of the frame, the image that is to be made.
        spec: Window radius and down factor; None if every token sees the whole image.
        picture: Shown enlarged to the frame; None is a plain frame.
        width, height: Limits of the result in px; it reaches one of them.
    """
    from PIL import Image, ImageDraw

    scale = min(width / size[1], height / size[0])
    shown = max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
    x, y = ((side // TOKEN_PIXELS // 2 + 0.5) * TOKEN_PIXELS * scale for side in (size[1], size[0]))
    centre = x, y
    radius = (spec.radius if spec else 0) * TOKEN_PIXELS * scale

    inside = (
        plain_frame(shown, WINDOW)
        if picture is None
        else picture.convert("RGB").resize(shown, Image.Resampling.LANCZOS)
    )
    page = inside
    if spec:
        mask = Image.new("L", (shown[0] * OVERSAMPLING, shown[1] * OVERSAMPLING), 0)
        ImageDraw.Draw(mask).ellipse(around(scaled(centre), radius * OVERSAMPLING), fill=255)
        outside = outside_of(picture, inside, size, spec)
        page = Image.composite(inside, outside, mask.resize(shown, Image.Resampling.LANCZOS))
    page = page.resize((shown[0] * OVERSAMPLING, shown[1] * OVERSAMPLING), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(page)
    draw_query(draw, scaled(centre), scale)
    if spec:
        draw_circle(draw, scaled(centre), radius * OVERSAMPLING)
    page = page.resize(shown, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(page)
    if spec:
        label_width(draw, centre, radius, spec, shown)
    draw.rectangle((0, 0, shown[0] - 1, shown[1] - 1), outline=FRAME_COLOR)
    return Overlay(page, scale, centre, radius)


def scaled(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * OVERSAMPLING, point[1] * OVERSAMPLING


def plain_frame(size: tuple[int, int], color: tuple[int, int, int]) -> Image.Image:
    """The frame of an image that is not known."""
    from PIL import Image

    return Image.blend(Image.new("RGB", size, color), Image.new("RGB", size, PAPER), 0.45)


def outside_of(picture: Image.Image | None, inside: Image.Image, size: tuple[int, int], spec: ClearSpec) -> Image.Image:
    """The frame outside the window: hidden, or as pooled cells."""
    from PIL import Image

    paper = Image.new("RGB", inside.size, PAPER)
    if not spec.pools:
        return plain_frame(inside.size, UNSEEN) if picture is None else Image.blend(inside, paper, VEIL_UNSEEN)
    columns, rows = (max(1, -(-side // (TOKEN_PIXELS * spec.down_factor))) for side in (size[1], size[0]))
    cells = columns, rows
    if picture is None:
        return chequered(inside.size, cells)
    coarse = inside.resize(cells, Image.Resampling.BOX).resize(inside.size, Image.Resampling.NEAREST)
    return Image.blend(coarse, paper, VEIL_OVERVIEW)


def chequered(size: tuple[int, int], cells: tuple[int, int]) -> Image.Image:
    """The pooled cells of an image that is not known: two similar colors in turn."""
    from PIL import Image

    board = Image.new("RGB", cells)
    board.putdata([OVERVIEW[(row + column) % 2] for row in range(cells[1]) for column in range(cells[0])])
    return board.resize(size, Image.Resampling.BOX if size[0] < cells[0] else Image.Resampling.NEAREST)


def draw_circle(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    """The border, between light lines, so that it shows on images of any color."""
    line = LINE * OVERSAMPLING
    for color, thick in ((PAPER, 2 * line), (CIRCLE, line)):
        draw.ellipse(around(centre, radius + thick / 2), outline=color, width=round(thick))


def draw_query(draw: ImageDraw.ImageDraw, centre: tuple[float, float], scale: float) -> None:
    """The query token, at least large enough to be found."""
    half = max(TOKEN_PIXELS * scale, SMALLEST_QUERY) / 2 * OVERSAMPLING
    draw.rectangle(around(centre, half + 2 * OVERSAMPLING), PAPER)
    draw.rectangle(around(centre, half), QUERY)


def label_width(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, spec: ClearSpec, shown: tuple[int, int]
) -> None:
    """The circle's width in px of the frame, on a light label below it, or inside if there is no room."""
    words = f"{2 * spec.radius * TOKEN_PIXELS} px"
    size = max(16.0, shown[0] * 0.024)
    type_ = font(size)
    below = centre[1] + radius + size * 1.2
    y = below if below + size < shown[1] else min(centre[1] + radius * 0.6, shown[1] - size * 1.4)
    x = min(max(centre[0], size * 3), shown[0] - size * 3)
    left, top, right, bottom = draw.textbbox((x, y), words, font=type_, anchor="mm")
    pad = size * 0.4
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), size * 0.5, PAPER, CIRCLE)
    draw.text((x, y), words, INK, type_, anchor="mm")
