"""The cost of CLEAR attention, counted exactly and without building anything of size L x L."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from math import isqrt
from typing import TYPE_CHECKING

from .families import FLUX1
from .layout import SequenceLayout
from .spec import ClearSpec

if TYPE_CHECKING:
    from .attention.tiling.plan import TilePlan

FLUX_WIDTH = FLUX1.width
"""Heads times head size of FLUX.1 (24 x 128)."""


def window_pairs(grid: tuple[int, int], radius: int, query_rows: range | None = None) -> int:
    """Query-key pairs of image tokens inside the windows of one grid, border included.

    Args:
        query_rows: Rows of the grid whose queries count; None is all.
    """
    height, width = grid
    rows = range(height) if query_rows is None else query_rows
    inside, pairs = ClearSpec(radius).inside, 0
    for dy in range(-min(radius, height) + 1, min(radius, height)):
        reach = min(isqrt(inside - dy * dy - 1), width - 1)  # the largest dx inside, to both sides
        with_key = max(0, min(rows.stop, height - dy) - max(rows.start, -dy))  # rows y whose row y + dy exists
        pairs += with_key * ((2 * reach + 1) * width - reach * (reach + 1))
    return pairs


def dense_pairs(layout: SequenceLayout) -> int:
    """Query-key pairs of dense attention over the same sequence."""
    return layout.length**2


def clear_pairs(layout: SequenceLayout, spec: ClearSpec, query_rows: range | None = None) -> int:
    """Query-key pairs of CLEAR attention: those of the method, no more (paper, table 1).

    Args:
        query_rows: Rows of the grid whose queries count, beside text and reference queries; None is all.
    """
    pooled_rows, pooled_cols = spec.cells(layout.grid)
    seen_by_all = layout.text + layout.reference
    everywhere = seen_by_all * layout.length
    image_queries = layout.image if query_rows is None else len(query_rows) * layout.grid[1]
    per_image_query = seen_by_all + pooled_rows * pooled_cols
    pairs = everywhere + image_queries * per_image_query + window_pairs(layout.grid, spec.radius, query_rows)
    return pairs - _cells_inside(layout.grid, spec, query_rows) if spec.overview else pairs


# Asked for with every line about the cost of a picture.
@lru_cache(maxsize=64)
def _cells_inside(grid: tuple[int, int], spec: ClearSpec, query_rows: range | None) -> int:
    """Pairs of an image query and a cell that lies inside its window, which an overview leaves out."""
    height, width = grid
    in_rows = _farthest(height, range(height) if query_rows is None else query_rows, spec)
    in_columns = list(accumulate(_farthest(width, range(width), spec)))
    pairs = 0
    for dy, number in enumerate(in_rows):
        reach = isqrt(spec.inside - dy * dy - 1)  # the largest dx inside
        pairs += number * in_columns[min(reach, width - 1)]
    return pairs


def _farthest(side: int, queries: range, spec: ClearSpec) -> list[int]:
    """Pairs of a query and a cell along one axis, by the distance from the query to the cell's farthest token, as far
    as windows reach."""
    found = [0] * side
    for first in range(0, side, spec.down_factor):
        last = min(first + spec.down_factor, side) - 1
        for query in range(max(queries.start, last - spec.radius + 1), min(queries.stop, first + spec.radius)):
            found[max(last - query, query - first)] += 1
    return found[: spec.radius]


def visited_blocks(plan: TilePlan) -> int:
    """(query block, key block) pairs that a block-sparse kernel works through for the image queries."""
    return plan.blocks + len(plan.partial) * plan.prefix_blocks


def visited_pairs(plan: TilePlan) -> int:
    """Query-key pairs that are computed: whole blocks for image queries, text and reference queries as they are."""
    layout = plan.layout
    return visited_blocks(plan) * plan.block_pairs + (layout.text + layout.reference) * layout.length


def overcompute(plan: TilePlan) -> float:
    """Pairs computed over pairs asked for, 1 or more."""
    return visited_pairs(plan) / clear_pairs(plan.layout, plan.spec, plan.query_rows)


def gflops(pairs: int, width: int = FLUX_WIDTH) -> float:
    """Attention cost of one layer in 10**9 floating-point operations: two products of ``2 * width`` a pair."""
    return 4 * pairs * width / 1e9


def token_gflops(width: int = FLUX_WIDTH, mlp_ratio: float = 4.0) -> float:
    """What a block does to each token besides attention, in 10**9 operations: q, k, v, output and both ends of the MLP.

    Double and single blocks of FLUX hold the same numbers a token, ``(4 + 2 * mlp_ratio) * width**2``.
    """
    return 2 * (4 + 2 * mlp_ratio) * width**2 / 1e9


def model_gflops(tokens: int, pairs: int, blocks: int, width: int = FLUX_WIDTH, mlp_ratio: float = 4.0) -> float:
    """One call of a model for one sequence in 10**9 operations: what its blocks do to each token, and attention.

    Args:
        tokens: Of the sequence.
        pairs: Query-key pairs, over all blocks.
    """
    return token_gflops(width, mlp_ratio) * tokens * blocks + gflops(pairs, width)
