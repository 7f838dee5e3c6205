"""An overview as FlexAttention takes it: what is added to the scores of pooled keys, looked up for each pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...overview_table import overview_table
from ...tiling.order import KEY_BLOCK, KEY_TILE_SIDE
from ...tiling.plan import TilePlan
from .block_mask import first_image_key, key_count

# Before any place that a query may be at.
_FAR_BEFORE = -(2**30)


class OverviewLists(NamedTuple):
    """Tensors alone, int32 but for ``table``: integers that are equal by chance would have one symbol of the compiler.

    Attributes:
        query_y, query_x: (queries,) in the kernel's order.
        start_y, start_x, base: (keys,) in the kernel's order, as of :class:`...overview_table.OverviewTable` for pooled
            keys; for others what leads to the table's last element.
        table: Its ``logs``, flat, and a zero.
        last_y, last_x, places: Without dimensions: last places, and places in a row of ``logs``.
    """

    query_y: Tensor
    query_x: Tensor
    start_y: Tensor
    start_x: Tensor
    base: Tensor
    table: Tensor
    last_y: Tensor
    last_x: Tensor
    places: Tensor


# As many as there are block masks.
@lru_cache(maxsize=4)
def overview_lists(plan: TilePlan, block: int) -> OverviewLists:
    """The lists of a plan with an overview; shared and never changed.

    Args:
        block: Keys of a block.
    """
    device = plan.partial.device
    with torch.inference_mode(False):
        table = overview_table(plan.layout.grid, plan.spec, device)
        tiles = torch.arange(plan.queries.tokens // KEY_BLOCK, dtype=torch.int32, device=device)
        row, column = (KEY_TILE_SIDE * one.repeat_interleave(KEY_BLOCK) for one in plan.queries.row_and_column(tiles))
        token = torch.arange(plan.queries.tokens, dtype=torch.int32, device=device) % KEY_BLOCK
        keys, first = key_count(plan, block), plan.prefix - table.bases.numel()

        def of_keys(pooled: Tensor, others: int) -> Tensor:
            every = torch.full((keys,), others, dtype=torch.int32, device=device)
            every[first : plan.prefix] = pooled
            return every

        return OverviewLists(
            row + token // KEY_TILE_SIDE + plan.query_rows.start,
            column + token % KEY_TILE_SIDE,
            of_keys(table.starts[0], _FAR_BEFORE),
            of_keys(table.starts[1], _FAR_BEFORE),
            of_keys(table.bases, table.logs.numel()),
            torch.cat([table.logs.flatten(), table.logs.new_zeros(1)]),
            *(torch.full((), one, dtype=torch.int32, device=device) for one in (*table.last, table.logs.shape[1])),
        )


def with_overview(score_mod: Callable[..., Tensor], plan: TilePlan, block: int) -> Callable[..., Tensor]:
    """A kernel's change of its scores, and after it what an overview adds.

    Args:
        block: Keys of a block.
    """
    assert first_image_key(plan, block) >= plan.prefix
    query_y, query_x, start_y, start_x, base, table, last_y, last_x, places = overview_lists(plan, block)

    def overview_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        scaled = score_mod(score, batch, head, query, key)
        # The compiler leaves out the case of an index below zero if it sees that there is none.
        query, key = query.clamp(min=0), key.clamp(min=0)
        place_y = torch.minimum((start_y[key] - query_y[query]).clamp(min=0), last_y)
        place_x = torch.minimum((start_x[key] - query_x[query]).clamp(min=0), last_x)
        return scaled + table[(place_y * places + place_x + base[key]).clamp(min=0)]

    return overview_mod
