"""The key tiles that each query tile needs, in the tile order of :mod:`.order`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from .order import KEY_BLOCK, KEY_TILE_SIDE, QUERY_BLOCK, TileOrder


@dataclass(frozen=True, eq=False)
class TilePlan:
    """The key tiles that each block of queries needs. Depends on layout, spec, query rows, halves and device alone.

    Attributes:
        layout, spec: What the plan was made for.
        query_rows: The image rows of the queries, one or more.
        halves: Whether a block of queries is half a query tile, in the order of the key tiles; else a query tile.
        queries: Tile order of the queries, a grid of the query rows alone.
        keys: Tile order of the keys, the whole grid; its query tiles have the same orientation.
        partial: (blocks of queries, P) key tiles of which some query sees some key; P is the longest list's length.
        partial_count: (blocks of queries,) int32, how many entries of each row of ``partial`` count; the rest are 0.
        full: (blocks of queries, F) key tiles of which every query sees every key, as ``partial``.
        full_count: (blocks of queries,) int32.
        blocks: Number of (block of queries, key tile) pairs in both lists together.
    """

    layout: SequenceLayout
    spec: ClearSpec
    query_rows: range
    halves: bool
    queries: TileOrder
    keys: TileOrder
    partial: Tensor
    partial_count: Tensor
    full: Tensor
    full_count: Tensor
    blocks: int

    @property
    def query_tiles(self) -> int:
        """Number of query tiles."""
        return self.queries.query_tiles

    @property
    def prefix(self) -> int:
        """Keys in front of the image that every image query sees: text, reference and pooled tokens."""
        rows, cols = self.spec.cells(self.layout.grid)
        return self.layout.text + self.layout.reference + rows * cols

    @property
    def prefix_blocks(self) -> int:
        """Key blocks that the prefix takes; the last one may be padded."""
        return -(-self.prefix // KEY_BLOCK)

    @property
    def block_pairs(self) -> int:
        """Query-key pairs of one block."""
        return self.block_queries * KEY_BLOCK

    @property
    def block_queries(self) -> int:
        """Queries of one block, padding included."""
        return KEY_BLOCK if self.halves else QUERY_BLOCK

    @property
    def nbytes(self) -> int:
        """Memory of the lists."""
        lists = (self.partial, self.partial_count, self.full, self.full_count)
        return sum(one.numel() * one.element_size() for one in lists)


@lru_cache(maxsize=16)
def tile_plan(
    layout: SequenceLayout, spec: ClearSpec, device: torch.device, query_rows: range | None = None, halves: bool = False
) -> TilePlan:
    """The plan of one layout and spec, its tensors on ``device``. Cached; the result is shared and never changed.

    Args:
        query_rows: The image rows of the queries, one or more; None is all of them.
        halves: Whether each half of a query tile gets a list of its own: shorter ones, and twice as many.
    """
    height, width = layout.grid
    query_rows = range(height) if query_rows is None else query_rows
    queries = TileOrder.least_padding((len(query_rows), width))
    upright = queries.upright
    order = TileOrder.of(layout.grid, upright)
    # Inference-mode tensors cannot be saved for backward, so cached tensors are built outside that mode.
    with torch.inference_mode(False):
        # Key tiles of a block of queries, and blocks of a query tile, along both axes.
        tall, wide = (1, 1) if halves else (2, 1) if upright else (1, 2)
        parts = (2, 1) if halves and upright else (1, 2) if halves else (1, 1)
        rows = _axis_tiles(height, query_rows, queries.tiles[0] * parts[0], tall, spec.radius)
        cols = _axis_tiles(width, range(width), queries.tiles[1] * parts[1], wide, spec.radius)
        # (rows of blocks, columns of blocks, key rows, key columns)
        nearest = rows.nearest[:, None, :, None] + cols.nearest[None, :, None, :]
        farthest = rows.farthest[:, None, :, None] + cols.farthest[None, :, None, :]
        full = farthest < spec.inside
        partial = (nearest < spec.inside) & ~full
        keys = _key_tile_index(rows.index[:, None, :, None], cols.index[None, :, None, :], order)
        partial, full, keys = (_by_query_tile(one, parts[0]) for one in (partial, full, keys))
        partial_list, partial_count = _compact(partial, keys)
        full_list, full_count = _compact(full, keys)
        return TilePlan(
            layout,
            spec,
            query_rows,
            halves,
            queries,
            order,
            partial_list.to(device),
            partial_count.to(device),
            full_list.to(device),
            full_count.to(device),
            blocks=int(partial_count.sum() + full_count.sum()),
        )


# Farther than any grid is wide; its square still fits an int32 sum of two.
_FAR = 2**15 - 1


@dataclass(frozen=True)
class _AxisTiles:
    """Key tiles near each query tile along one axis, each (query tiles, candidates) int32.

    Attributes:
        index: Key tile along the axis; 0 if there is none.
        nearest, farthest: Square of the smallest and largest distance in tokens between a query and a key.
    """

    index: Tensor
    nearest: Tensor
    farthest: Tensor


def _axis_tiles(side: int, queries: range, query_tiles: int, key_tiles_each: int, radius: int) -> _AxisTiles:
    """Args:
    side: Tokens of the grid along the axis.
    queries: Those of them that are queries; query tiles start at the first.
    key_tiles_each: Key tiles of a query tile along the axis.
    """
    size = KEY_TILE_SIDE * key_tiles_each
    first = torch.arange(query_tiles, dtype=torch.int32, device="cpu") * size + queries.start
    # Padded queries are no reason to visit a key; a tile of nothing but padding keeps the last token.
    last = (first + (size - 1)).clamp_(max=queries.stop - 1)
    first.clamp_(max=queries.stop - 1)
    key_tiles = -(-side // KEY_TILE_SIDE)
    reach = min((size + 2 * (radius - 1)) // KEY_TILE_SIDE + 2, key_tiles)
    start = (first - (radius - 1)).div(KEY_TILE_SIDE, rounding_mode="floor").clamp_(min=0)
    index = start[:, None] + torch.arange(reach, dtype=torch.int32, device="cpu")
    exists = index < key_tiles
    key_first = index * KEY_TILE_SIDE
    whole = key_first + KEY_TILE_SIDE <= side
    key_last = (key_first + KEY_TILE_SIDE - 1).clamp_(max=side - 1)
    nearest = torch.maximum(key_first - last[:, None], first[:, None] - key_last).clamp_(min=0)
    farthest = torch.maximum(key_last - first[:, None], last[:, None] - key_first)
    nearest = nearest.masked_fill(~exists, _FAR)
    # A key tile with padding in it always needs the mask.
    farthest = farthest.masked_fill(~(exists & whole), _FAR)
    return _AxisTiles(index.masked_fill(~exists, 0), nearest.square(), farthest.square())


def _by_query_tile(of_blocks: Tensor, upper_and_lower: int) -> Tensor:
    """(rows of blocks, columns of blocks, key rows, key columns) as (blocks, candidates), a query tile's together.

    Args:
        upper_and_lower: Blocks of a query tile one below the other. Those side by side are together already.
    """
    return of_blocks.unflatten(0, (-1, upper_and_lower)).transpose(1, 2).flatten(0, 2).flatten(1)


def _key_tile_index(row: Tensor, col: Tensor, order: TileOrder) -> Tensor:
    """Index in tile order of the key tile at (row, col), in key tiles."""
    columns = order.tiles[1]
    if order.upright:
        return (torch.div(row, 2, rounding_mode="floor") * columns + col) * 2 + row % 2
    return (row * columns + torch.div(col, 2, rounding_mode="floor")) * 2 + col % 2


def _compact(wanted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted keys of each row moved to its front, and their number.

    Args:
        wanted: bool (rows, candidates).
        keys: int32, as ``wanted``.
    """
    position = wanted.cumsum(dim=1, dtype=torch.int32) - 1
    count = position[:, -1] + 1
    small = keys.numel() == 0 or int(keys.max()) < 2**15
    lists = keys.new_zeros(len(keys), max(1, int(count.max())), dtype=torch.int16 if small else torch.int32)
    row, candidate = wanted.nonzero(as_tuple=True)
    lists[row, position[row, candidate].long()] = keys[row, candidate].to(lists.dtype)
    return lists, count
