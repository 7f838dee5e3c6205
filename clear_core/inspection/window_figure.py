"""A figure of one window on the token grid (Pillow is imported where it is used)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cost import clear_pairs, dense_pairs
from ..layout import TOKEN_PIXELS, SequenceLayout
from ..spec import ClearSpec
from .canvas import (
    CIRCLE,
    INK,
    MUTED,
    OVERSAMPLING,
    PAPER,
    POOLED,
    POOLED_BORDER,
    QUERY,
    REFERENCE,
    SUMMARISED,
    TEXT,
    UNSEEN,
    WINDOW,
    Color,
    around,
    font,
)

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

MARGIN = 0.04
# In px of the finished image: a smaller gap between tokens is a blur, a smaller query cannot be found.
SMALLEST_GAP = 4.0
SMALLEST_QUERY = 6.0


@dataclass(frozen=True)
class GridPlace:
    """Position of the token grid in the image.

    Attributes:
        left, top: Corner of the grid in px.
        cell: Side of a token in px.
    """

    left: float
    top: float
    cell: float

    def point(self, y: float, x: float) -> tuple[float, float]:
        """(px from the left, px from the top) of a position in tokens; (0.5, 0.5) is the middle of the first token."""
        return self.left + x * self.cell, self.top + y * self.cell


def place_grid(grid: tuple[int, int], width: int) -> GridPlace:
    """Position of the grid in an image ``width`` px wide; the grid is as large as the margins allow."""
    free = width * (1 - 2 * MARGIN)
    cell = free / max(grid)
    return GridPlace((width - grid[1] * cell) / 2, width * 0.185, cell)


def draw_window(
    layout: SequenceLayout, spec: ClearSpec, *, query: tuple[int, int] | None = None, width: int = 1000
) -> Image.Image:
    """Draw what one image query sees, true to scale.

    Args:
        layout: Text, image grid and reference tokens.
        spec: Window radius and down factor.
        query: (y, x) of the query in tokens; None takes the middle.
        width: Of the image in px, 400 or more.

    Returns:
        An RGB image, about as high as it is wide for a square grid.

    Raises:
        ValueError: ``query`` lies outside the grid, or ``width`` is below 400.
        ImportError: Pillow is not installed.
    """
    from PIL import Image, ImageDraw

    height, columns = layout.grid
    y, x = query if query is not None else (height // 2, columns // 2)
    if not (0 <= y < height and 0 <= x < columns):
        raise ValueError(f"query is {(y, x)}; expected a token of the {height} x {columns} grid.")
    if width < 400:
        raise ValueError(f"width is {width}; expected at least 400 px.")

    place = place_grid(layout.grid, width * OVERSAMPLING)
    entries = legend(layout, spec, (y, x))
    line = width * OVERSAMPLING * 0.03
    bottom = place.top + height * place.cell
    page = Image.new("RGB", (width * OVERSAMPLING, round(bottom + line * (len(entries) + 1.4))), PAPER)
    draw = ImageDraw.Draw(page)
    draw_heading(draw, layout, spec, page.width)
    grid = draw_grid(layout, spec, (y, x), place.cell)
    page.paste(grid, (round(place.left), round(place.top)))
    draw_legend(draw, entries, page.width * MARGIN, bottom + line, line)
    return page.resize((width, page.height // OVERSAMPLING), Image.Resampling.LANCZOS)


def draw_grid(layout: SequenceLayout, spec: ClearSpec, query: tuple[int, int], cell: float) -> Image.Image:
    """The grid alone, ``cell`` px a token: tokens, pooled cells, and the circle, cut off at the grid's border."""
    from PIL import Image, ImageDraw

    rows, columns = layout.grid
    image = Image.new("RGB", (round(columns * cell), round(rows * cell)), PAPER)
    draw = ImageDraw.Draw(image)
    gap = cell * 0.06 if cell >= SMALLEST_GAP * OVERSAMPLING else 0.0
    far = SUMMARISED if spec.pools else UNSEEN
    for y in range(rows):
        for x in range(columns):
            color = WINDOW if spec.sees(y - query[0], x - query[1]) else far
            left, top, side = x * cell + gap, y * cell + gap, max(cell - 2 * gap - 1, 0)
            draw.rectangle((left, top, left + side, top + side), color)
    if spec.pools:
        draw_pooled_cells(draw, layout, spec, cell)
    centre = (query[1] + 0.5) * cell, (query[0] + 0.5) * cell
    draw.ellipse(around(centre, spec.radius * cell), outline=CIRCLE, width=2 * OVERSAMPLING)
    draw.rectangle(around(centre, max(cell / 2 - gap - 1, SMALLEST_QUERY / 2 * OVERSAMPLING)), QUERY)
    return image


def draw_pooled_cells(draw: ImageDraw.ImageDraw, layout: SequenceLayout, spec: ClearSpec, cell: float) -> None:
    """Borders of the pooled cells, and one dot a cell for its key."""
    (rows, columns), d = layout.grid, spec.down_factor
    pooled_rows, pooled_columns = spec.cells(layout.grid)
    for i in range(1, pooled_rows):
        draw.line((0, i * d * cell, columns * cell, i * d * cell), POOLED_BORDER, OVERSAMPLING)
    for j in range(1, pooled_columns):
        draw.line((j * d * cell, 0, j * d * cell, rows * cell), POOLED_BORDER, OVERSAMPLING)
    dot = min(max(d * cell * 0.1, 1.5), 5.0 * OVERSAMPLING)
    for i in range(pooled_rows):
        for j in range(pooled_columns):
            y = (i * d + min((i + 1) * d, rows)) / 2 * cell
            x = (j * d + min((j + 1) * d, columns)) / 2 * cell
            draw.ellipse(around((round(x), round(y)), round(dot)), POOLED)


def draw_heading(draw: ImageDraw.ImageDraw, layout: SequenceLayout, spec: ClearSpec, page: int) -> None:
    """Title, image size, and the bar of text and reference tokens above the grid; ``page`` px wide."""
    rows, columns = layout.grid
    left, right = page * MARGIN, page * (1 - MARGIN)
    draw.text((left, page * 0.035), "What one image token sees under CLEAR", INK, font(page * 0.034))
    draw.text(
        (left, page * 0.085),
        f"{rows} x {columns} tokens = {rows * TOKEN_PIXELS} x {columns * TOKEN_PIXELS} pixels (h x w), {spec}",
        MUTED,
        font(page * 0.021),
    )
    parts = [(layout.text, TEXT, "text"), (layout.reference, REFERENCE, "reference")]
    parts = [part for part in parts if part[0]]
    top, bottom = page * 0.133, page * 0.165
    if not parts:
        draw.text((left, (top + bottom) / 2), "no text tokens", MUTED, font(page * 0.019), anchor="lm")
    for index, (tokens, color, name) in enumerate(parts):
        a, b = (left + (right - left) * (index + step) / len(parts) for step in (0, 1))
        draw.rectangle((a, top, b - (page * 0.008 if index + 1 < len(parts) else 0), bottom), color)
        draw.text(
            ((a + b) / 2, (top + bottom) / 2),
            f"{tokens} {name} tokens: every query sees them all",
            PAPER,
            font(page * 0.018),
            anchor="mm",
        )


def legend(layout: SequenceLayout, spec: ClearSpec, query: tuple[int, int]) -> list[tuple[Color | None, str]]:
    """(color, text) of each line; the totals at the end have no color."""
    rows, columns = layout.grid
    tokens = [(y, x) for y in range(rows) for x in range(columns)]
    inside = {token for token in tokens if spec.sees(token[0] - query[0], token[1] - query[1])}
    seen, d = len(inside), spec.down_factor
    # An overview leaves out the cells that lie inside the window.
    pooled = (
        len({(y // d, x // d) for y, x in tokens if not spec.overview or (y, x) not in inside}) if spec.pools else 0
    )
    entries: list[tuple[Color | None, str]] = [
        (QUERY, f"the query, token {query[0]}, {query[1]}"),
        (WINDOW, f"its window: {seen:,} image tokens less than {spec.radius} tokens away"),
    ]
    if spec.pools:
        entries.append((POOLED, f"{pooled:,} pooled keys, one for each cell of {d} x {d} tokens"))
        entries.append((SUMMARISED, "image tokens that it sees through their pooled key only"))
    elif seen < layout.image:
        entries.append((UNSEEN, "image tokens that it does not see"))
    keys = layout.text + layout.reference + seen + pooled
    pairs, dense = clear_pairs(layout, spec), dense_pairs(layout)
    entries.append((None, f"{keys:,} keys in all; dense attention has {layout.length:,} for every query."))
    entries.append(
        (None, f"Whole layer: {pairs:,} pairs of query and key, {pairs / dense:.1%} of dense attention's {dense:,}.")
    )
    return entries


def draw_legend(
    draw: ImageDraw.ImageDraw, entries: list[tuple[Color | None, str]], left: float, top: float, line: float
) -> None:
    for index, (color, words) in enumerate(entries):
        y = top + index * line
        if color is not None:
            draw.rectangle((left, y - line * 0.3, left + line * 0.6, y + line * 0.3), color)
        draw.text(
            (left + (line if color is not None else 0), y),
            words,
            INK if color is not None else MUTED,
            font(line * 0.66),
            anchor="lm",
        )
