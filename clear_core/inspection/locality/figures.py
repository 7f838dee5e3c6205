"""The pictures of a record of locality, drawn with Pillow, which is imported where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..canvas import CIRCLE, DENSE, GRID_LINE, INK, MUTED, OVERSAMPLING, PAPER, QUERY, Color, around, font, legible
from ..charts import Curve, decades, draw_cost_chart
from ..units import percent, significant
from .summary import (
    Record,
    attention_names,
    block_of,
    distance_errors,
    levels_of,
    local_shares,
    radius_place,
    spec_of,
    text_shares,
    window_errors,
)

if TYPE_CHECKING:
    from PIL import Image

SIZE = 20 * OVERSAMPLING
"""Letters in px of the drawing."""

ROW, SHORT_ROW = 34 * OVERSAMPLING, 13 * OVERSAMPLING
"""Height of a row of the heat map; the short one if there are more rows than :data:`MANY`."""

MANY = 16
SHOWN_HEADS = 8
MAP_SIDE = 172 * OVERSAMPLING
WIDEST_BAR = 160 * OVERSAMPLING
LEAST = 1e-9
"""Smallest error on a logarithmic axis."""


def mix(share: float, low: Color = PAPER, high: Color = CIRCLE) -> Color:
    """The color between two others, ``share`` from 0 to 1."""
    red, green, blue = (round(one + (other - one) * share) for one, other in zip(low, high, strict=True))
    return red, green, blue


def canvas(width: int, height: int) -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (width, height), PAPER)


def finished(image: Image.Image) -> Image.Image:
    """Scaled to its size, which smooths lines."""
    from PIL import Image

    return image.resize((image.width // OVERSAMPLING, image.height // OVERSAMPLING), Image.Resampling.LANCZOS)


def draw_mass(record: Record, width: int) -> Image.Image:
    """Heat maps side by side, one for each noise level: a row for each attention, a column for each radius.

    A cell is the share of the mass on the image that lies within the radius, mean over heads; the last column is the
    share of all mass on text.

    Args:
        width: In px.
    """
    from PIL import ImageDraw

    names, levels, radii = attention_names(record), levels_of(record), record["settings"]["radii"]
    row = ROW if len(names) <= MANY else SHORT_ROW
    left, top = round(3.2 * SIZE), round(3.4 * SIZE)
    image = canvas(width * OVERSAMPLING, top + row * len(names) + SIZE)
    draw, letters = ImageDraw.Draw(image), font(SIZE)
    panel = (image.width - left) / len(levels)
    cell = panel * 0.94 / (len(radii) + 1.25)
    for index, name in enumerate(names):
        if row == ROW or index % 4 == 0:
            draw.text((left - SIZE * 0.5, top + row * (index + 0.5)), name, INK, letters, anchor="rm")
    for place, level in enumerate(levels):
        x0 = left + panel * place
        draw.text((x0, SIZE * 0.9), f"noise level {level:g}", INK, letters, anchor="lm")
        shares, texts = local_shares(record, level), text_shares(record, level)
        for column, heading in enumerate([*map(str, radii), "text"]):
            x = x0 + cell * (column + 0.25 * (heading == "text"))
            draw.text((x + cell / 2, SIZE * 2.5), heading, MUTED, font(min(SIZE, cell * 0.5)), anchor="mm")
            for index, name in enumerate(names):
                text = heading == "text"
                value = texts[name] if text else shares[name][:, column].mean().item()
                y = top + row * index
                box = (x, y, x + cell - 2, y + row - 2)
                draw.rectangle(box, mix(value, high=DENSE if text else CIRCLE))
                if row == ROW:
                    ink = PAPER if value > 0.55 else INK
                    words = f"{100 * value:.0f}"
                    draw.text((x + cell / 2, y + row / 2), words, ink, font(min(SIZE, cell * 0.42)), anchor="mm")
    return finished(image)


def shown_heads(record: Record, count: int = SHOWN_HEADS) -> list[tuple[str, int, float]]:
    """Heads from the most local to the least, evenly spread: attention, head, share within the window's radius."""
    place = radius_place(record)
    heads = [
        (name, head, value)
        for name, shares in local_shares(record).items()
        for head, value in enumerate(shares[:, place].tolist())
    ]
    order = sorted(heads, key=lambda each: -each[2])
    if len(order) <= count:
        return order
    return [order[round(index * (len(order) - 1) / (count - 1))] for index in range(count)]


def draw_heads(record: Record, maps: Mapping[str, Tensor], width: int) -> Image.Image:
    """Where one query looks, for some heads: its weights over the largest, as square roots; the window's circle on it.

    Args:
        maps: By attention, (heads, h, w) from 0 to 1.
        width: In px.
    """
    from PIL import Image, ImageDraw

    heads = shown_heads(record)
    height, columns = record["grid"]
    scale = MAP_SIDE / max(height, columns)
    size = round(columns * scale), round(height * scale)
    across = max(1, min(len(heads), width * OVERSAMPLING // (MAP_SIDE + SIZE)))
    line = size[1] + round(2.2 * SIZE)
    image = canvas(width * OVERSAMPLING, line * -(-len(heads) // across))
    draw, letters = ImageDraw.Draw(image), font(SIZE * 0.9)
    radius, (y, x) = spec_of(record).radius, record["settings"]["query"]
    shown = record["settings"]["radii"][radius_place(record)]
    for index, (name, head, share) in enumerate(heads):
        # The largest weight is often the query's own; a square root shows the others too.
        values = (255 * maps[name][head].float().clamp(0, 1).sqrt()).round().to(torch.uint8)
        grey = Image.frombytes("L", (columns, height), bytes(values.flatten().tolist()))
        tile = Image.new("RGB", size, PAPER)
        tile.paste(CIRCLE, (0, 0), grey.resize(size, Image.Resampling.NEAREST))
        marks = ImageDraw.Draw(tile)
        centre = (x + 0.5) * scale, (y + 0.5) * scale
        marks.ellipse(around(centre, radius * scale), outline=QUERY, width=2 * OVERSAMPLING)
        marks.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=GRID_LINE, width=OVERSAMPLING)
        corner = (index % across) * (MAP_SIDE + SIZE), (index // across) * line
        image.paste(tile, corner)
        words = f"{name} head {head}: {percent(share)} < {shown}"
        draw.text((corner[0], corner[1] + size[1] + SIZE), words, INK, letters, anchor="lm")
    return finished(image)


def draw_distances(record: Record, width: int, height: int) -> Image.Image:
    """The error of the prediction by the distance that positions are clipped to, far and near; both axes logarithmic.

    Args:
        width, height: In px.
    """
    from PIL import ImageDraw

    image = canvas(width * OVERSAMPLING, height * OVERSAMPLING)
    limits = record["settings"]["limits"]
    curves = [
        Curve(name, color, tuple(max(error, LEAST) for error in distance_errors(record, side)), in_use=True)
        for side, name, color in (("far", "far tokens\nmoved near", CIRCLE), ("near", "near tokens\nmoved away", QUERY))
    ]
    if len(limits) < 2:
        return draw_sentence(width, "One distance was measured; a curve needs two.")
    draw_cost_chart(
        ImageDraw.Draw(image),
        (0, 0, image.width, image.height),
        limits,
        curves,
        x_ticks=[(limit, str(limit)) for limit in limits],
        y_name=[f"{significant(100 * tick)} %" for tick in decades([v for curve in curves for v in curve.values])],
        mark=None,
        size=SIZE,
    )
    return finished(image)


def draw_windows(record: Record, width: int, height: int) -> Image.Image:
    """A bar for each block: the error of the prediction if it alone has windows; proposed ones in another color.

    Args:
        width, height: In px.
    """
    from PIL import ImageDraw

    from ...dense_blocks import parse_dense_blocks

    image = canvas(width * OVERSAMPLING, height * OVERSAMPLING)
    draw, letters = ImageDraw.Draw(image), font(SIZE)
    errors = window_errors(record)
    proposed = parse_dense_blocks(record["proposal"]["dense_blocks"], record["double"], record["single"])
    largest, bottom = max(*errors.values(), LEAST), image.height - 2 * SIZE
    step = image.width / len(errors)
    for index, (name, error) in enumerate(errors.items()):
        x, y = step * index, bottom - (bottom - 2 * SIZE) * error / largest
        color = QUERY if block_of(name, record) in proposed else CIRCLE
        draw.rectangle((x, min(y, bottom - OVERSAMPLING), x + min(step * 0.8, WIDEST_BAR), bottom), color)
        if len(errors) <= MANY or index % 4 == 0:
            draw.text((x + min(step * 0.8, WIDEST_BAR) / 2, bottom + SIZE), name, INK, letters, anchor="mm")
        if len(errors) <= MANY or error == largest:
            draw.text((x, y - SIZE * 0.8), percent(error), MUTED, letters, anchor="lm")
    draw.line((0, bottom, image.width, bottom), GRID_LINE, OVERSAMPLING)
    return finished(image)


def draw_sentence(width: int, words: str) -> Image.Image:
    """One line."""
    from PIL import ImageDraw

    image = canvas(width * OVERSAMPLING, 2 * SIZE)
    ImageDraw.Draw(image).text((0, SIZE), legible(words), MUTED, font(SIZE), anchor="lm")
    return finished(image)


def draw_all(record: Record, maps: Mapping[str, Tensor], width: int) -> Sequence[tuple[str, str, Image.Image]]:
    """Every figure that the record has, as (title, explanation, picture)."""
    radius = spec_of(record).radius
    figures: list[tuple[str, str, Image.Image]] = []
    if "mass" in record:
        figures.append(
            (
                "How much lies near",
                "Of the attention of image queries to the image, per cent within a radius in tokens, mean over heads; "
                "a row for each block (d double, s single). Text: per cent of all attention.",
                draw_mass(record, width),
            )
        )
        if maps:
            y, x = record["settings"]["query"]
            shown = record["settings"]["radii"][radius_place(record)]
            figures.append(
                (
                    f"Where one query looks (row {y}, column {x})",
                    f"Heads from the most local to the least, each with the share closer than "
                    f"{shown} for all queries; the circle has radius {radius}.",
                    draw_heads(record, maps, width),
                )
            )
    if "distances" in record:
        figures.append(
            (
                "Rotary distances, clipped",
                "Error of the prediction (squared distance over squared length) by the distance in tokens, each axis "
                "for itself: far tokens moved to it, or near ones.",
                draw_distances(record, width, 360),
            )
        )
    if "windows" in record:
        figures.append(
            (
                f"Cost of windows ({spec_of(record)}) in one block alone",
                "Error of the prediction if only this block has windows; blocks proposed to stay dense in orange.",
                draw_windows(record, width, 300),
            )
        )
    return figures
