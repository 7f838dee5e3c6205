"""Charts of what attention costs, drawn with Pillow alone (imported where it is used)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..attention.tiling.plan import TilePlan
from ..cost import dense_pairs, visited_pairs
from .window_figure import CIRCLE, MUTED, POOLED, QUERY, TEXT, UNSEEN, Color, font

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in px."""

GRID_LINE: Color = (229, 232, 237)
DENSE: Color = (128, 134, 145)
LEFT_AXIS, RIGHT_LABELS, BOTTOM_AXIS = 0.11, 0.21, 0.11


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: Written at its right end.
        color: Of line and name.
        values: Above 0, one for each place on the x axis.
        in_use: Drawn thick.
    """

    name: str
    color: Color
    values: tuple[float, ...]
    in_use: bool = False


@dataclass(frozen=True)
class Axes:
    """A plane with two logarithmic axes.

    Attributes:
        box: Of the plane in px.
        x, y: (least, most) value.
    """

    box: Box
    x: tuple[float, float]
    y: tuple[float, float]

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Place in px of a pair of values."""
        left, top, right, bottom = self.box
        return (left + share(x, self.x) * (right - left), bottom - share(y, self.y) * (bottom - top))


def share(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies between two others on a logarithmic scale, 0 to 1."""
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def decades(values: Sequence[float]) -> list[float]:
    """Powers of ten from the one below the least value to the one above the greatest."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + 1)]


def chart_axes(box: Box, places: Sequence[float], curves: Sequence[Curve]) -> Axes:
    """The plane inside ``box``; what is left of it, below it and to its right is for labels."""
    left, top, right, bottom = box
    ticks = decades([value for curve in curves for value in curve.values])
    width, height = right - left, bottom - top
    plane = (left + width * LEFT_AXIS, top + height * 0.03, right - width * RIGHT_LABELS, bottom - height * BOTTOM_AXIS)
    return Axes(plane, (places[0], places[-1]), (ticks[0], ticks[-1]))


def draw_cost_chart(
    draw: ImageDraw.ImageDraw,
    box: Box,
    places: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_name: Sequence[str],
    mark: tuple[float, str] | None,
    size: float,
) -> Axes:
    """Draws curves over picture size, both axes logarithmic.

    Args:
        box: Where, labels included.
        places: On the x axis, ascending.
        curves: One value for each place.
        x_ticks: (place, name).
        y_name: Name of each power of ten from the least up, see :func:`decades`.
        mark: (place, name) of a vertical line.
        size: Of the letters in px.
    """
    axes = chart_axes(box, places, curves)
    left, top, right, bottom = axes.box
    type_ = font(size)
    for tick, name in zip(decades([value for curve in curves for value in curve.values]), y_name, strict=False):
        y = axes.point(places[0], tick)[1]
        draw.line((left, y, right, y), GRID_LINE, 2)
        draw.text((left - size * 0.5, y), name, MUTED, type_, anchor="rm")
    for place, name in x_ticks:
        x = axes.point(place, axes.y[0])[0]
        draw.line((x, top, x, bottom), GRID_LINE, 2)
        draw.text((x, bottom + size * 0.8), name, MUTED, type_, anchor="mt")
    if mark and axes.x[0] <= mark[0] <= axes.x[1]:
        x = axes.point(mark[0], axes.y[0])[0]
        dashes(draw, x, top, bottom, size)
        anchor = "rt" if x > (left + right) / 2 else "lt"
        draw.text((x + (-0.4 if anchor == "rt" else 0.4) * size, top), mark[1], QUERY, type_, anchor=anchor)
    for curve in curves:
        points = [axes.point(place, value) for place, value in zip(places, curve.values, strict=True)]
        draw.line(points, curve.color, round(size * (0.24 if curve.in_use else 0.11)), joint="curve")
    ends = [axes.point(places[-1], curve.values[-1])[1] for curve in curves]
    for curve, y in zip(
        curves, apart(ends, size * 1.35 * max(curve.name.count("\n") + 1 for curve in curves)), strict=True
    ):
        draw.text((right + size * 0.6, y), curve.name, curve.color, type_, anchor="lm", spacing=size * 0.2)
    return axes


def dashes(draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float, size: float) -> None:
    y = top
    while y < bottom:
        draw.line((x, y, x, min(y + size * 0.35, bottom)), QUERY, 3)
        y += size * 0.7


def apart(places: Sequence[float], least: float) -> list[float]:
    """The same places in the same order, moved so that neighbours are at least ``least`` apart."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    excess = moved[order[-1]] - places[order[-1]]
    # Shared between both ends, so that no label wanders far from its line.
    return [place - excess / 2 for place in moved]


def draw_table(
    draw: ImageDraw.ImageDraw,
    box: Box,
    columns: Sequence[tuple[str, Color]],
    rows: Sequence[Sequence[str]],
    *,
    highlighted: int | None,
    size: float,
) -> float:
    """Draws a table, its first column to the left and the others to the right; returns where it ends.

    Args:
        box: Its right and left border and its top count.
        columns: (heading, color of heading and cells).
        highlighted: Row of the picture in question.
    """
    left, top, right, _ = box
    line = size * 1.9
    first = size * 7
    width = (right - left - first) / (len(columns) - 1)
    edges = [left + size * 0.4, *(left + first + width * (index + 1) - size * 0.4 for index in range(len(columns) - 1))]
    anchors = ["lm", *["rm"] * (len(columns) - 1)]
    if highlighted is not None:
        y = top + line * (highlighted + 1)
        draw.rectangle((left, y, right, y + line), (253, 240, 233))
    for index, cells in enumerate([[name for name, _ in columns], *rows]):
        y = top + line * (index + 0.5)
        for (_, color), cell, x, anchor in zip(columns, cells, edges, anchors, strict=True):
            draw.text((x, y), cell, color, font(size), anchor=anchor)
        draw.line((left, y + line / 2, right, y + line / 2), GRID_LINE, 2)
    return top + line * (len(rows) + 1)


def block_map(plan: TilePlan, side: int) -> Image.Image:
    """Which tiles are worked on, as a picture: a row for a part of the sequence, a column for what it looks at.

    Prompt (and what else every query sees) comes first, then the image in tile order. Where several tiles share a
    pixel, its color is their mean.

    Args:
        side: Of the picture in px.
    """
    from PIL import Image

    layout = plan.layout
    key_tiles = 2 * plan.query_tiles
    prefix = max(1, round(side * plan.prefix / (plan.prefix + layout.image)))
    seen_by_all = max(1, round(side * layout.text / layout.length))
    rows, columns = min(side - seen_by_all, plan.query_tiles), min(side - prefix, key_tiles)
    hits = torch.zeros(rows * columns)
    for lists, counts in ((plan.partial, plan.partial_count), (plan.full, plan.full_count)):
        used = torch.arange(lists.shape[1]) < counts.cpu()[:, None]
        query, place = used.nonzero(as_tuple=True)
        key = lists.cpu()[query, place].long()
        at = (query * rows // plan.query_tiles) * columns + key * columns // key_tiles
        hits += torch.bincount(at, minlength=rows * columns)
    filled = (hits * rows * columns / (plan.query_tiles * key_tiles)).clamp(max=1)
    # A thin band would vanish in the mean; its root keeps it visible.
    grey = Image.frombytes("L", (columns, rows), bytes((255 * filled.sqrt()).round().to(torch.uint8).tolist()))
    place = (side - prefix, side - seen_by_all)
    picture = Image.new("RGB", (side, side), TEXT)
    picture.paste(POOLED, (round(prefix * layout.text / max(plan.prefix, 1)), seen_by_all, prefix, side))
    picture.paste(UNSEEN, (prefix, seen_by_all, side, side))
    picture.paste(CIRCLE, (prefix, seen_by_all), grey.resize(place, Image.Resampling.NEAREST))
    return picture


def worked_on(plan: TilePlan) -> float:
    """Share of all pairs of the sequence that a block-sparse kernel computes, whole tiles counted."""
    return visited_pairs(plan) / dense_pairs(plan.layout)


def draw_layers(draw: ImageDraw.ImageDraw, box: Box, num_double: int, num_single: int, dense: frozenset[int]) -> None:
    """A cell for each block of the model: double blocks, a gap, single blocks; those without windows are grey."""
    left, top, right, bottom = box
    step = (right - left) / (num_double + num_single + 1)
    for index in range(num_double + num_single):
        x = left + step * (index + (index >= num_double))
        color = DENSE if index in dense else CIRCLE
        draw.rectangle((x, top, x + step * 0.72, bottom), color)
