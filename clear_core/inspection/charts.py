"""Charts and tables, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .canvas import GRID_LINE, MUTED, QUERY, Box, Color, font

if TYPE_CHECKING:
    from PIL import ImageDraw

LEFT_AXIS, RIGHT_LABELS, BOTTOM_AXIS = 0.11, 0.21, 0.11


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: Written at its right end.
        color: Of line and name.
        values: Above 0, one for each position on the x axis.
        in_use: Whether it is drawn thick.
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
        """Position in px of a pair of values."""
        left, top, right, bottom = self.box
        return (left + fraction(x, self.x) * (right - left), bottom - fraction(y, self.y) * (bottom - top))


def fraction(value: float, ends: tuple[float, float]) -> float:
    """Position of a value between two others on a logarithmic scale, 0 to 1."""
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def decades(values: Sequence[float]) -> list[float]:
    """Powers of ten that enclose all values."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + 1)]


def chart_axes(box: Box, positions: Sequence[float], curves: Sequence[Curve]) -> Axes:
    """The plane inside ``box``, with room for labels at its left, right and bottom."""
    left, top, right, bottom = box
    ticks = decades([value for curve in curves for value in curve.values])
    width, height = right - left, bottom - top
    plane = (left + width * LEFT_AXIS, top + height * 0.03, right - width * RIGHT_LABELS, bottom - height * BOTTOM_AXIS)
    return Axes(plane, (positions[0], positions[-1]), (ticks[0], ticks[-1]))


def draw_cost_chart(
    draw: ImageDraw.ImageDraw,
    box: Box,
    positions: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_name: Sequence[str],
    mark: tuple[float, str] | None,
    size: float,
) -> Axes:
    """Draw curves over picture size, both axes logarithmic.

    Args:
        box: Area of the chart, labels included.
        positions: On the x axis, ascending.
        curves: One value for each position.
        x_ticks: (position, name).
        y_name: Name of each power of ten in ascending order, see :func:`decades`.
        mark: (position, name) of a vertical line.
        size: Of the letters in px.
    """
    axes = chart_axes(box, positions, curves)
    left, top, right, bottom = axes.box
    type_ = font(size)
    for tick, name in zip(decades([value for curve in curves for value in curve.values]), y_name, strict=True):
        y = axes.point(positions[0], tick)[1]
        draw.line((left, y, right, y), GRID_LINE, 2)
        draw.text((left - size * 0.5, y), name, MUTED, type_, anchor="rm")
    for position, name in x_ticks:
        x = axes.point(position, axes.y[0])[0]
        draw.line((x, top, x, bottom), GRID_LINE, 2)
        draw.text((x, bottom + size * 0.8), name, MUTED, type_, anchor="mt")
    if mark and axes.x[0] <= mark[0] <= axes.x[1]:
        x = axes.point(mark[0], axes.y[0])[0]
        dashes(draw, x, top, bottom, size)
        anchor = "rt" if x > (left + right) / 2 else "lt"
        draw.text((x + (-0.4 if anchor == "rt" else 0.4) * size, top), mark[1], QUERY, type_, anchor=anchor)
    for curve in curves:
        points = [axes.point(*point) for point in zip(positions, curve.values, strict=True)]
        draw.line(points, curve.color, round(size * (0.24 if curve.in_use else 0.11)), joint="curve")
    ends = [axes.point(positions[-1], curve.values[-1])[1] for curve in curves]
    line = size * 1.35 * max(curve.name.count("\n") + 1 for curve in curves)
    for curve, y in zip(curves, apart(ends, line), strict=True):
        draw.text((right + size * 0.6, y), curve.name, curve.color, type_, anchor="lm", spacing=size * 0.2)
    return axes


def dashes(draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float, size: float) -> None:
    y = top
    while y < bottom:
        draw.line((x, y, x, min(y + size * 0.35, bottom)), QUERY, 3)
        y += size * 0.7


def apart(positions: Sequence[float], least: float) -> list[float]:
    """The positions in the same order, moved so that neighbours are at least ``least`` apart."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    excess = moved[order[-1]] - positions[order[-1]]
    # Shared between both ends, so that no label is far from its line.
    return [position - excess / 2 for position in moved]


def draw_table(
    draw: ImageDraw.ImageDraw,
    box: Box,
    columns: Sequence[tuple[str, Color]],
    rows: Sequence[Sequence[str]],
    *,
    highlighted: int | None,
    size: float,
) -> float:
    """Draw a table with its first column aligned left and the others right.

    Args:
        box: Area of the table; its bottom is not used.
        columns: (heading, color of heading and cells).
        highlighted: Index of a row to highlight.
        size: Of the letters in px.

    Returns:
        The bottom of the table in px.
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
