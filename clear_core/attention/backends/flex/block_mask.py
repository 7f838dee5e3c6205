"""The window as FlexAttention takes it: lists of key blocks for every query block, and a mask for the partial ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tiling.order import KEY_BLOCK, KEY_TILE_SIDE, QUERY_BLOCK, query_tile_size
from ...tiling.plan import TilePlan

# Dynamo specialises on the integers 0 and 1. This much is added to what may be 0 or 1.
PAST_SPECIAL = 2


def key_block(needs_grad: bool) -> int:
    """Keys of a block: a key tile, or two of them that lie together for a kernel with a gradient.

    The backward kernel takes steps of 128 keys on compute capability 9.0 and 10.x and on AMD, and torch refuses blocks
    that are no multiple of its steps.
    """
    return QUERY_BLOCK if needs_grad else KEY_BLOCK


def first_image_key(plan: TilePlan, block: int) -> int:
    """Keys of the prefix, padding to whole blocks of ``block`` keys included."""
    return -(-plan.prefix // block) * block


def key_count(plan: TilePlan, block: int) -> int:
    """Keys of the kernel, padding included."""
    return first_image_key(plan, block) + plan.keys.tokens


# Each block of a model asks for the same one.
@lru_cache(maxsize=4)
def block_mask(plan: TilePlan, needs_grad: bool) -> Any:
    """The ``BlockMask`` of a plan; shared and never changed."""
    with torch.inference_mode(False):
        return block_mask_for(plan, needs_grad, card=plan.partial.device.type == "cuda")


def block_mask_for(plan: TilePlan, needs_grad: bool, card: bool) -> Any:
    """As :func:`block_mask`, uncached, in the form for the kernel of a card or for that of a CPU."""
    from torch.nn.attention.flex_attention import BlockMask

    known = inspect.signature(BlockMask.from_kv_blocks).parameters
    block = key_block(needs_grad)
    queries, keys = plan.queries.tokens, key_count(plan, block)
    options: dict[str, Any] = {}
    if "compute_q_blocks" in known:
        options["compute_q_blocks"] = needs_grad
    if "seq_lengths" in known:
        options["seq_lengths"] = (queries, keys)
    partial_count, partial, full_count, full = kernel_lists(plan, block)
    # The CPU kernel, the transposed lists and older versions of torch read as many columns as there are key blocks.
    if needs_grad or not card or len(options) < 2:
        columns = keys // block
        partial, full = (F.pad(one, (0, columns - one.shape[-1])) for one in (partial, full))
    return BlockMask.from_kv_blocks(
        partial_count,
        partial,
        full_count,
        full,
        BLOCK_SIZE=(QUERY_BLOCK, block),
        mask_mod=mask_by_table(plan, block) if card else mask_by_division(plan, block),
        **options,
    )


# A model runs one layout at a time, or a few that take turns.
@lru_cache(maxsize=4)
def kernel_lists(plan: TilePlan, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Partial and full key blocks of every query block, the prefix included, as the kernel takes them.

    Args:
        block: Keys of a block.

    Returns:
        Counts (1, 1, query tiles) and lists (1, 1, query tiles, width), int32, for partial and for full blocks; both
        lists have one width, because older kernels step through both by the stride of the first.
    """
    with torch.inference_mode(False):
        whole, prefix_blocks = plan.prefix // block, first_image_key(plan, block) // block
        prefix = torch.arange(prefix_blocks, dtype=torch.int32, device=plan.partial.device)
        prefix = prefix.expand(plan.query_tiles, -1)
        lists: list[Tensor] = []
        partial, partial_count, full, full_count = _image_lists(plan, block)
        for blocks, tiles in ((prefix[:, whole:], partial), (prefix[:, :whole], full)):
            lists.append(torch.cat([blocks, tiles + prefix_blocks], dim=1))
        width = max(one.shape[1] for one in lists)
        partial, full = (F.pad(one, (0, width - one.shape[1]))[None, None] for one in lists)
        partial_count = partial_count + (prefix_blocks - whole)
        full_count = full_count + whole
        return partial_count[None, None], partial, full_count[None, None], full


def _image_lists(plan: TilePlan, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Partial and full blocks of image keys, and their numbers, as the plan's lists; int32."""
    if block == KEY_BLOCK:
        return plan.partial.to(torch.int32), plan.partial_count, plan.full.to(torch.int32), plan.full_count
    # How many key tiles of each block are partial, and how many are full.
    numbers: list[Tensor] = []
    for tiles, count in ((plan.partial, plan.partial_count), (plan.full, plan.full_count)):
        listed = torch.arange(tiles.shape[1], device=tiles.device) < count[:, None]
        number = torch.zeros(plan.query_tiles, plan.keys.tokens // block, dtype=torch.int32, device=tiles.device)
        numbers.append(number.scatter_add_(1, tiles.long() * KEY_BLOCK // block, listed.to(torch.int32)))
    is_full = numbers[1] == block // KEY_BLOCK
    return *_listed((numbers[0] + numbers[1] > 0) & ~is_full), *_listed(is_full)


def _listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted columns of each row, the others behind them, and their number; int32."""
    return (~wanted).to(torch.int8).argsort(dim=1, stable=True).to(torch.int32), wanted.sum(dim=1, dtype=torch.int32)


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key, from batch, head and their indices in the kernel's order."""


def mask_by_division(plan: TilePlan, block: int) -> MaskMod:
    """The mask of plain integers: the compiler makes them symbols, so one kernel serves every grid, radius and range.

    There must be ten or more of them: the C++ backend replaces its own symbol "ks<count>" as text, and a count of one
    digit would be found inside the names of these. It also fails on tensors, so this is the form for a CPU.
    """
    prefix = plan.prefix + PAST_SPECIAL
    image = first_image_key(plan, block) + PAST_SPECIAL
    columns = plan.keys.tiles[1] + PAST_SPECIAL
    first_row = plan.query_rows.start + PAST_SPECIAL
    height = plan.layout.grid[0] + PAST_SPECIAL
    width = plan.layout.grid[1] + PAST_SPECIAL
    inside = plan.spec.inside + PAST_SPECIAL
    step_y, step_x = query_tile_size(plan.keys.upright)
    # Offset of the second key tile of a query tile from the first.
    second_y = step_y - KEY_TILE_SIDE + PAST_SPECIAL
    second_x = step_x - KEY_TILE_SIDE + PAST_SPECIAL

    def position(token: Tensor) -> tuple[Tensor, Tensor]:
        """(y, x) of a token in tile order."""
        tile, second = token // QUERY_BLOCK, token // KEY_BLOCK % 2
        row, col = tile // (columns - PAST_SPECIAL), tile % (columns - PAST_SPECIAL)
        y = row * step_y + second * (second_y - PAST_SPECIAL) + token // KEY_TILE_SIDE % KEY_TILE_SIDE
        x = col * step_x + second * (second_x - PAST_SPECIAL) + token % KEY_TILE_SIDE
        return y, x

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_y, query_x = position(query)
        key_y, key_x = position(key - (image - PAST_SPECIAL))
        dy, dx = query_y + (first_row - PAST_SPECIAL) - key_y, query_x - key_x
        window = (dy * dy + dx * dx < inside - PAST_SPECIAL) & (key >= image - PAST_SPECIAL)
        real = (key_y < height - PAST_SPECIAL) & (key_x < width - PAST_SPECIAL)
        return (key < prefix - PAST_SPECIAL) | (window & real)

    return mask_mod


# A row and a column of key tiles in one int32.
_ROW_SHIFT = 16


def mask_by_table(plan: TilePlan, block: int) -> MaskMod:
    """The mask for cards: the place of a token's key tile is looked up, and the rest are shifts.

    A division by a number that is known at run time only takes a card many instructions, for every column of a block.
    """
    table = _tile_places(plan)
    prefix = plan.prefix + PAST_SPECIAL
    image = first_image_key(plan, block) + PAST_SPECIAL
    first_row = plan.query_rows.start + PAST_SPECIAL
    height = plan.layout.grid[0] + PAST_SPECIAL
    width = plan.layout.grid[1] + PAST_SPECIAL
    inside = plan.spec.inside + PAST_SPECIAL
    block_bits, side_bits = KEY_BLOCK.bit_length() - 1, KEY_TILE_SIDE.bit_length() - 1

    def position(token: Tensor) -> tuple[Tensor, Tensor]:
        """(y, x) of a token in tile order; that of the first tile for a negative one."""
        place = table[(token >> block_bits).clamp(min=0)]
        y = ((place >> _ROW_SHIFT) << side_bits) + ((token >> side_bits) & (KEY_TILE_SIDE - 1))
        x = ((place & (2**_ROW_SHIFT - 1)) << side_bits) + (token & (KEY_TILE_SIDE - 1))
        return y, x

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_y, query_x = position(query)
        key_y, key_x = position(key - (image - PAST_SPECIAL))
        dy, dx = query_y + (first_row - PAST_SPECIAL) - key_y, query_x - key_x
        window = (dy * dy + dx * dx < inside - PAST_SPECIAL) & (key >= image - PAST_SPECIAL)
        real = (key_y < height - PAST_SPECIAL) & (key_x < width - PAST_SPECIAL)
        return (key < prefix - PAST_SPECIAL) | (window & real)

    return mask_mod


def _tile_places(plan: TilePlan) -> Tensor:
    """(key tiles,) int32, row * 2**16 + column of each key tile; for queries too, whose order has the same columns."""
    order = plan.keys if plan.keys.query_tiles >= plan.queries.query_tiles else plan.queries
    tiles = torch.arange(2 * order.query_tiles, dtype=torch.int32, device=plan.partial.device)
    row, column = order.row_and_column(tiles)
    return (row << _ROW_SHIFT) + column
