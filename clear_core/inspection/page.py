"""The page of CLEARInspect: the circle over the picture, the block map, and the cost of a step at each size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..attention.tiling.plan import tile_plan
from .block_map import block_map, computed_share, draw_layers
from .canvas import CIRCLE, DENSE, INK, MUTED, OVERSAMPLING, PAPER, POOLED, font, legible
from .charts import Curve, decades, draw_cost_chart, draw_table
from .facts import CostRow, Inspection
from .overlay import draw_overlay
from .report import advice, circle_words, headline, origin_words, step_words, used_words
from .units import memory_words, percent, side_name, significant, time_words

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from .canvas import Font

WIDTH = 1640
MARGIN, GUTTER = 44, 52
COLUMN = (WIDTH - 2 * MARGIN - GUTTER) // 2
TITLE, HEADING, BODY, SMALL = 48, 33, 26, 22
"""Letter sizes in px. The page is shown at a third of its size on the node."""

SIDES = (1024, 2048, 4096, 8192)
"""Squares of the table; the curves have more points between them."""

PLACES = tuple(1024 * 2 ** (step / 4) for step in range(13))
MAP_SIDE = 320
CHART_HEIGHT = 480


def draw_sheet(facts: Inspection, picture: Image.Image | None = None) -> Image.Image:
    """Draw the page.

    Args:
        facts: What is shown.
        picture: Of any size; shown enlarged to ``facts.size``. None shows a plain frame.

    Returns:
        An RGB image, 1640 px wide.
    """
    effective = facts.effective
    spec = effective.spec if effective.active else None
    overlay = draw_overlay(facts.size, spec, picture=picture, width=COLUMN, height=COLUMN)
    page = Page()
    page.text(headline(facts), TITLE, INK)
    page.text(origin_words(facts), BODY, MUTED)
    page.gap(24)
    top = page.y
    page.right = MARGIN + COLUMN
    page.gap(overlay.image.height + 14)
    page.text(circle_words(facts), BODY, INK)
    if effective.active:
        page.gap(30)
        draw_map(page, facts)
    bottom = page.y
    page.y, page.left, page.right = top - 6, MARGIN + COLUMN + GUTTER, WIDTH - MARGIN
    draw_costs(page, facts)
    page.y, page.left = max(page.y, bottom) + 24, MARGIN
    sheet = finished(page, facts.versions)
    sheet.paste(overlay.image, (MARGIN + (COLUMN - overlay.image.width) // 2, round(top)))
    return sheet


def draw_note(sentence: str, versions: Mapping[str, str]) -> Image.Image:
    """The page if there is nothing to draw: one sentence."""
    page = Page()
    page.text("No windows here", TITLE, INK)
    page.gap(8)
    page.text(sentence, HEADING, INK)
    page.gap(16)
    return finished(page, versions)


def finished(page: Page, versions: Mapping[str, str]) -> Image.Image:
    """The page with its last line, cut to its height and scaled to size."""
    from PIL import Image

    page.text(" · ".join(f"{name} {version}" for name, version in versions.items()), SMALL, MUTED)
    page.gap(MARGIN - 14)
    sheet = page.image.crop((0, 0, page.image.width, round(page.y) * OVERSAMPLING))
    return sheet.resize((WIDTH, sheet.height // OVERSAMPLING), Image.Resampling.LANCZOS)


class Page:
    """A page that is written from top to bottom; all lengths in px of the finished page.

    Attributes:
        y: Top of the next line.
        left, right: Borders of the next text.
    """

    def __init__(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (WIDTH * OVERSAMPLING, 2 * WIDTH * OVERSAMPLING), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y: float = MARGIN - 14
        self.left: float = MARGIN
        self.right: float = WIDTH - MARGIN

    def gap(self, height: float) -> None:
        self.y += height

    def text(self, words: str, size: float, color: tuple[int, int, int]) -> None:
        """Write text between the borders, wrapped, and continue below it."""
        type_ = font(size * OVERSAMPLING)
        for line in wrapped(self.draw, legible(words), type_, (self.right - self.left) * OVERSAMPLING):
            place = (self.left * OVERSAMPLING, (self.y + size * 0.7) * OVERSAMPLING)
            self.draw.text(place, line, color, type_, anchor="lm")
            self.y += size * 1.38

    def box(self, height: float) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) between the borders from here down, in px of the drawing."""
        left, top, right, bottom = (value * OVERSAMPLING for value in (self.left, self.y, self.right, self.y + height))
        return left, top, right, bottom


def wrapped(draw: ImageDraw.ImageDraw, words: str, type_: Font, width: float) -> list[str]:
    """Lines no wider than ``width`` px; a longer word, such as a file name, is broken."""
    lines: list[str] = []
    line = ""
    for word in itertools.chain.from_iterable(broken(draw, word, type_, width) for word in words.split()):
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=type_) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


def broken(draw: ImageDraw.ImageDraw, word: str, type_: Font, width: float) -> list[str]:
    """A word in pieces no wider than ``width`` px."""
    pieces: list[str] = []
    piece = ""
    for letter in word:
        if piece and draw.textlength(piece + letter, font=type_) > width:
            pieces.append(piece)
            piece = ""
        piece += letter
    return [*pieces, piece]


def draw_map(page: Page, facts: Inspection) -> None:
    """The block map at the left, its explanation at the right, the model's blocks below."""
    effective = facts.effective
    layout = effective.layout
    plan = tile_plan(layout, effective.spec.within(layout.grid), torch.device("cpu"))
    page.text("What is computed", HEADING, INK)
    page.gap(8)
    left, top = page.left, page.y
    page.image.paste(block_map(plan, MAP_SIDE * OVERSAMPLING), (round(left * OVERSAMPLING), round(top * OVERSAMPLING)))
    page.left += MAP_SIDE + 28
    page.text(
        "Each row is a part of the picture, each column what it looks at: prompt first, then the picture, tile "
        "by tile.",
        BODY,
        INK,
    )
    page.gap(8)
    page.text(
        f"Only what is coloured is computed: {percent(min(1.0, computed_share(plan)))} of what looking at the whole "
        "picture computes.",
        BODY,
        INK,
    )
    page.y, page.left = max(page.y, top + MAP_SIDE) + 16, left
    blocks, windowed = effective.shape.blocks, effective.windowed_blocks
    page.text(
        f"{windowed} of the model's {blocks} blocks have the window"
        + (f"; {blocks - windowed} look at the whole picture (grey)." if windowed < blocks else "."),
        BODY,
        INK,
    )
    page.gap(6)
    draw_layers(page.draw, page.box(26), effective)
    page.gap(26)


def draw_costs(page: Page, facts: Inspection) -> None:
    """Curves and a table of the cost of a step."""
    rows = [facts.row((side, side)) for side in SIDES]
    unit = Unit(facts, rows[0])
    page.text(f"{'Time' if facts.pace else 'Work'} of one step, by size of the picture", HEADING, INK)
    page.text(unit.words, SMALL, MUTED)
    page.gap(12)
    curves = curves_of(facts, unit)
    ticks = decades([value for curve in curves for value in curve.values])
    area = (facts.size[0] * facts.size[1]) ** 0.5
    draw_cost_chart(
        page.draw,
        page.box(CHART_HEIGHT),
        PLACES,
        curves,
        x_ticks=[(side, side_name(side)) for side in SIDES],
        y_name=[unit.name(tick) for tick in ticks],
        mark=(area, "this picture"),
        size=SMALL * OVERSAMPLING,
    )
    page.gap(CHART_HEIGHT + 20)
    here = facts.row(facts.size)
    listed = [(f"{side_name(side)} square", row) for side, row in zip(SIDES, rows, strict=True)]
    listed.append((f"{facts.size[1]} x {facts.size[0]}", here))
    cells = [
        [
            name,
            *(cost_cell(unit, row, value) for value in (row.dense, row.window, row.pooled)),
            memory_words(row.memory),
        ]
        for name, row in listed
    ]
    # The rows have other circles where the radius goes by the size.
    by_size = facts.settings is None or facts.settings.radius_by_size
    circle = "circle" if by_size else f"{facts.circle_pixels} px circle"
    columns = [("picture", INK), ("whole picture", DENSE), (circle, CIRCLE), ("overview", POOLED), ("memory", MUTED)]
    bottom = draw_table(page.draw, page.box(0), columns, cells, highlighted=len(cells) - 1, size=SMALL * OVERSAMPLING)
    page.y = bottom / OVERSAMPLING + 8
    page.text(
        "Per cent: of attention to the whole picture, the model's other work included. Memory: beside the "
        "weights, calculated.",
        SMALL,
        MUTED,
    )
    page.gap(8)
    page.text(step_words(facts), BODY, INK)
    for sentence in [*advice(facts), *used_words(facts)]:
        page.gap(8)
        page.text(sentence, BODY, INK)


class Unit:
    """Unit of the chart: seconds of this machine, or steps of the dense model at 1K."""

    def __init__(self, facts: Inspection, smallest: CostRow):
        self.facts = facts
        self.one = smallest.dense
        self.words = (
            f"Calculated from the last run here: {facts.pace.what}."
            if facts.pace
            else "In steps at 1K with attention to the whole picture. Nothing was timed here yet, so there is no "
            "time: sample once, then run this node again."
        )

    def size(self, work: float) -> float:
        """Work in this unit."""
        seconds = self.facts.seconds(work)
        return work / self.one if seconds is None else seconds

    def name(self, value: float) -> str:
        return time_words(value) if self.facts.pace else f"{significant(value)} x"


def cost_cell(unit: Unit, row: CostRow, work: float) -> str:
    """``"3.2 s, 22 %"``; dense attention has no share."""
    words = unit.name(unit.size(work))
    return words if work == row.dense else f"{words}, {percent(work / row.dense)}"


def curves_of(facts: Inspection, unit: Unit) -> list[Curve]:
    """Dense attention, windows, windows with pooled keys."""
    token = facts.token_pixels
    sides = [round(side / token) * token for side in PLACES]
    rows = [facts.row((side, side)) for side in sides]
    pools, windowed = facts.effective.spec.pools, facts.effective.active
    return [
        Curve("whole picture", DENSE, tuple(unit.size(row.dense) for row in rows), in_use=not windowed),
        Curve("window", CIRCLE, tuple(unit.size(row.window) for row in rows), in_use=windowed and not pools),
        Curve("with overview", POOLED, tuple(unit.size(row.pooled) for row in rows), in_use=windowed and pools),
    ]
