"""What CLEAR attention costs, counted exactly and without building anything of size L x L."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import SequenceLayout
from .spec import ClearSpec

if TYPE_CHECKING:
    from .attention.plan import TilePlan

FLUX_WIDTH = 3072
"""Heads times head size of FLUX.1 (24 x 128)."""


def window_pairs(grid: tuple[int, int], radius: int) -> int:
    """Query-key pairs of image tokens inside the windows of one grid, border included."""
    height, width = grid
    pairs = 0
    for dy in range(-min(radius, height) + 1, min(radius, height)):
        for dx in range(-min(radius, width) + 1, min(radius, width)):
            if dy * dy + dx * dx < radius * radius:
                pairs += (height - abs(dy)) * (width - abs(dx))
    return pairs


def dense_pairs(layout: SequenceLayout) -> int:
    """Query-key pairs of ordinary attention over the same sequence."""
    return layout.length**2


def clear_pairs(layout: SequenceLayout, spec: ClearSpec) -> int:
    """Query-key pairs of CLEAR attention: what the method asks for, no more (paper, table 1)."""
    pooled_rows, pooled_cols = layout.pooled_grid(spec.down_factor)
    seen_by_all = layout.text + layout.reference
    everywhere = seen_by_all * layout.length
    per_image_query = seen_by_all + pooled_rows * pooled_cols
    return everywhere + layout.image * per_image_query + window_pairs(layout.grid, spec.radius)


def visited_blocks(plan: TilePlan) -> int:
    """(query block, key block) pairs that a block-sparse kernel works through for the image queries."""
    return plan.blocks + plan.query_tiles * plan.prefix_blocks


def visited_pairs(plan: TilePlan) -> int:
    """Query-key pairs that are computed: whole blocks for image queries, text and reference queries as they are."""
    layout = plan.layout
    return visited_blocks(plan) * plan.block_pairs + (layout.text + layout.reference) * layout.length


def overcompute(plan: TilePlan) -> float:
    """Pairs computed over pairs asked for, 1 or more."""
    return visited_pairs(plan) / clear_pairs(plan.layout, plan.spec)


def gflops(pairs: int, width: int = FLUX_WIDTH) -> float:
    """Attention cost of one layer in 10**9 floating-point operations: two products of ``2 * width`` a pair."""
    return 4 * pairs * width / 1e9
