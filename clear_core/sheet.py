"""One page on a model's windows: the circle over the picture, the block map, and what a step costs at each size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .attention.plan import tile_plan
from .charts import DENSE, Curve, block_map, decades, draw_cost_chart, draw_layers, draw_table, worked_on
from .draw import CIRCLE, INK, MUTED, OVERSAMPLING, PAPER, POOLED, font
from .inspection import CostRow, Inspection
from .overlay import draw_overlay
from .report import advice, circle_words, headline, origin_words, step_words
from .words import memory_words, percent, side_name, significant, time_words

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

WIDTH = 1200
MARGIN = 48
TITLE, HEADING, BODY, SMALL = 40, 29, 24, 21
"""Letter sizes in px."""

SIDES = (1024, 2048, 4096, 8192)
"""Squares of the table; the curves have some places more between them."""

PLACES = tuple(1024 * 2 ** (step / 4) for step in range(13))
MAP_SIDE = 380
CHART_HEIGHT = 500


def draw_sheet(facts: Inspection, picture: Image.Image | None = None) -> Image.Image:
    """Draws the page.

    Args:
        facts: What is shown.
        picture: Of any size; shown enlarged to ``facts.size``. None shows a plain frame.

    Returns:
        An RGB picture, 1200 px wide.
    """
    from PIL import Image

    spec = facts.spec if facts.is_windowed and not facts.spec.covers(facts.grid) else None
    overlay = draw_overlay(facts.size, spec, picture=picture, width=WIDTH - 2 * MARGIN, height=WIDTH - 2 * MARGIN)
    page = Page(Image.new("RGB", (WIDTH * OVERSAMPLING, 8 * WIDTH * OVERSAMPLING), PAPER))
    page.text(headline(facts), TITLE, INK)
    page.text(origin_words(facts), BODY, MUTED)
    page.gap(20)
    picture_top = page.y
    page.gap(overlay.image.height + 16)
    page.text(circle_words(facts), BODY, INK)
    page.gap(34)
    if facts.is_windowed:
        draw_map(page, facts)
    draw_costs(page, facts)
    page.gap(26)
    page.text(" · ".join(f"{name} {version}" for name, version in facts.versions.items()), SMALL, MUTED)
    page.gap(MARGIN - 10)
    sheet = page.image.crop((0, 0, page.image.width, round(page.y * OVERSAMPLING)))
    sheet = sheet.resize((WIDTH, sheet.height // OVERSAMPLING), Image.Resampling.LANCZOS)
    sheet.paste(overlay.image, ((WIDTH - overlay.image.width) // 2, round(picture_top)))
    return sheet


def draw_note(sentence: str, versions: Mapping[str, str]) -> Image.Image:
    """The page where there is nothing to draw: one sentence."""
    from PIL import Image

    page = Page(Image.new("RGB", (WIDTH * OVERSAMPLING, WIDTH * OVERSAMPLING), PAPER))
    page.text("No windows here", TITLE, INK)
    page.gap(8)
    page.text(sentence, HEADING, INK)
    page.gap(16)
    page.text(" · ".join(f"{name} {version}" for name, version in versions.items()), SMALL, MUTED)
    page.gap(MARGIN - 10)
    sheet = page.image.crop((0, 0, page.image.width, round(page.y * OVERSAMPLING)))
    return sheet.resize((WIDTH, sheet.height // OVERSAMPLING), Image.Resampling.LANCZOS)


class Page:
    """A page that is written from top to bottom; all lengths in px of the finished page.

    Attributes:
        y: Where the next line begins.
    """

    def __init__(self, image: Image.Image):
        from PIL import ImageDraw

        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.y: float = MARGIN - 8

    def gap(self, height: float) -> None:
        self.y += height

    def text(self, words: str, size: float, color: tuple[int, int, int], left: float = MARGIN,
             right: float = WIDTH - MARGIN) -> None:
        """Writes words between two borders, wrapped, and goes on below them."""
        type_ = font(size * OVERSAMPLING)
        for line in wrapped(self.draw, words, type_, (right - left) * OVERSAMPLING):
            self.draw.text((left * OVERSAMPLING, (self.y + size * 0.7) * OVERSAMPLING), line, color, type_, anchor="lm")
            self.y += size * 1.4

    def box(self, left: float, right: float, height: float) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) from here down, in px of the drawing."""
        return tuple(value * OVERSAMPLING for value in (left, self.y, right, self.y + height))


def wrapped(draw: ImageDraw.ImageDraw, words: str, type_: object, width: float) -> list[str]:
    """Lines no wider than ``width`` px; a longer word stands alone."""
    lines, line = [], ""
    for word in words.split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=type_) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


def draw_map(page: Page, facts: Inspection) -> None:
    """The block map to the left, words on it and the model's layers to the right."""
    plan = tile_plan(facts.layout, facts.spec.within(facts.grid), torch.device("cpu"))
    page.text("What is computed", HEADING, INK)
    page.gap(8)
    start, side = page.y, MAP_SIDE * OVERSAMPLING
    page.image.paste(block_map(plan, side), (MARGIN * OVERSAMPLING, round(start * OVERSAMPLING)))
    left = MARGIN + MAP_SIDE + 40
    page.text("Each row is a part of the picture, each column what it looks at: prompt first, then the picture, tile by "
              "tile from top to bottom.", BODY, INK, left)
    page.gap(10)
    page.text(f"Only what is coloured is computed: {percent(min(1.0, worked_on(plan)))} of what attention to the whole "
              "picture computes.", BODY, INK, left)
    page.gap(18)
    layers, dense = facts.model.blocks, len(facts.dense_blocks)
    page.text(f"{layers - dense} of the model's {layers} blocks have the window"
              + (f"; {dense} look at the whole picture (grey)." if dense else "."), BODY, INK, left)
    page.gap(6)
    draw_layers(page.draw, page.box(left, WIDTH - MARGIN, 26), facts.model.num_double, facts.model.num_single,
                facts.dense_blocks, facts.is_windowed)
    page.y = max(page.y + 26, start + MAP_SIDE)
    page.gap(38)


def draw_costs(page: Page, facts: Inspection) -> None:
    """Curves and table of what a step costs."""
    rows = [facts.row((side, side)) for side in SIDES]
    unit = Unit(facts, rows[0])
    page.text(f"{'Time' if facts.pace else 'Work'} of one step, by size of the picture", HEADING, INK)
    page.text(unit.words, SMALL, MUTED)
    page.gap(12)
    curves = curves_of(facts, unit)
    ticks = decades([value for curve in curves for value in curve.values])
    area = (facts.size[0] * facts.size[1]) ** 0.5
    draw_cost_chart(
        page.draw, page.box(MARGIN, WIDTH - MARGIN, CHART_HEIGHT), PLACES, curves,
        x_ticks=[(side, side_name(side)) for side in SIDES], y_name=[unit.name(tick) for tick in ticks],
        mark=(area, "this picture"), size=SMALL * OVERSAMPLING)
    page.gap(CHART_HEIGHT + 20)
    here = facts.row(facts.size)
    listed = [(f"{side_name(side)}, square", row) for side, row in zip(SIDES, rows)]
    listed.append((f"{facts.size[1]} x {facts.size[0]}", here))
    cells = [[name, *(cost_cell(unit, row, value) for value in (row.dense, row.window, row.pooled)),
              memory_words(row.memory)] for name, row in listed]
    columns = [("picture", INK), ("whole picture", DENSE), (f"{2 * facts.spec.radius * 16} px window", CIRCLE),
               ("with overview", POOLED), ("memory", MUTED)]
    bottom = draw_table(page.draw, page.box(MARGIN, WIDTH - MARGIN, 0), columns, cells, highlighted=len(cells) - 1,
                        size=SMALL * OVERSAMPLING)
    page.y = bottom / OVERSAMPLING + 8
    page.text("Per cent: of attention to the whole picture, the model's other work included. Memory: beside the "
              "weights, calculated.", SMALL, MUTED)
    page.gap(8)
    page.text(step_words(facts), BODY, INK)
    for sentence in advice(facts):
        page.gap(8)
        page.text(sentence, BODY, INK)


class Unit:
    """What the chart counts in: seconds of this machine, or steps of the model at 1K."""

    def __init__(self, facts: Inspection, smallest: CostRow):
        self.facts = facts
        self.one = smallest.dense
        self.words = (f"Calculated from the last run here: {facts.pace.what}." if facts.pace else
                      "In steps at 1K with attention to the whole picture. Nothing was timed here yet, so there is no "
                      "time: sample once, then run this node again.")

    def size(self, work: float) -> float:
        """Work in this unit."""
        return self.facts.seconds(work) if self.facts.pace else work / self.one

    def name(self, value: float) -> str:
        return time_words(value) if self.facts.pace else f"{significant(value)} x"


def cost_cell(unit: Unit, row: CostRow, work: float) -> str:
    """``"3.2 s, 22 %"``; the whole picture's column has no share."""
    words = unit.name(unit.size(work))
    return words if work == row.dense else f"{words}, {percent(work / row.dense)}"


def curves_of(facts: Inspection, unit: Unit) -> list[Curve]:
    """Whole picture, window, window with overview."""
    rows = [facts.row((round(side / 16) * 16,) * 2) for side in PLACES]
    pools, windowed = facts.spec.pools, facts.is_windowed
    return [
        Curve("whole picture", DENSE, tuple(unit.size(row.dense) for row in rows), in_use=not windowed),
        Curve("window", CIRCLE, tuple(unit.size(row.window) for row in rows), in_use=windowed and not pools),
        Curve("with overview", POOLED, tuple(unit.size(row.pooled) for row in rows), in_use=windowed and pools),
    ]
