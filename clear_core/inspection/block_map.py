"""Maps of what is computed: the kernel blocks of one layer, and the windowed blocks of the model.

Pillow is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..attention.tiling.plan import TilePlan
from ..cost import dense_pairs, visited_pairs
from ..effective import Effective
from .canvas import CIRCLE, DENSE, POOLED, TEXT, UNSEEN, Box

if TYPE_CHECKING:
    from PIL import Image, ImageDraw


def block_map(plan: TilePlan, side: int) -> Image.Image:
    """Draw which kernel blocks are computed: a row for each query tile, a column for each key tile.

    The prompt and the other keys that every query sees come first, then the image in tile order. A pixel that several
    tiles share has their mean color.

    Args:
        side: Of the image in px.
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
        query, index = used.nonzero(as_tuple=True)
        key = lists.cpu()[query, index].long()
        pixel = (query * rows // plan.query_tiles) * columns + key * columns // key_tiles
        hits += torch.bincount(pixel, minlength=rows * columns)
    filled = (hits * rows * columns / (plan.query_tiles * key_tiles)).clamp(max=1)
    # In the mean a thin band would vanish; the square root keeps it visible.
    grey = Image.frombytes("L", (columns, rows), bytes((255 * filled.sqrt()).round().to(torch.uint8).tolist()))
    size = (side - prefix, side - seen_by_all)
    image = Image.new("RGB", (side, side), TEXT)
    image.paste(POOLED, (round(prefix * layout.text / max(plan.prefix, 1)), seen_by_all, prefix, side))
    image.paste(UNSEEN, (prefix, seen_by_all, side, side))
    image.paste(CIRCLE, (prefix, seen_by_all), grey.resize(size, Image.Resampling.NEAREST))
    return image


def computed_share(plan: TilePlan) -> float:
    """Share of all query-key pairs that a block-sparse kernel computes; it computes whole blocks."""
    return visited_pairs(plan) / dense_pairs(plan.layout)


def draw_layers(draw: ImageDraw.ImageDraw, box: Box, effective: Effective) -> None:
    """Draw a cell for each block of the model: double blocks, a gap, single blocks; dense ones are grey."""
    left, top, right, bottom = box
    blocks = effective.shape.block_ids
    step = (right - left) / (len(blocks) + 1)
    for index, block in enumerate(blocks):
        x = left + step * (index + (block[0] == "single"))
        draw.rectangle((x, top, x + step * 0.72, bottom), CIRCLE if effective.is_windowed(block) else DENSE)
