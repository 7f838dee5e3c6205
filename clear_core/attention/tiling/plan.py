"""The 2-D tile order of the image tokens, and which key tiles each query tile needs.

A block-sparse kernel works on blocks of queries times blocks of keys. In row-major order a block is a strip of one
row and touches far more keys than its windows ask for; in tile order it is a small rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec

KEY_TILE_SIDE = 8
KEY_BLOCK = KEY_TILE_SIDE**2
"""Tokens of a key tile, 8 x 8; one block of keys for the kernel."""

QUERY_BLOCK = 2 * KEY_BLOCK
"""Tokens of a query tile, two adjacent key tiles (16 x 8 or 8 x 16); one block of queries for the kernel."""


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Which key tiles each query tile of one grid needs. Depends on nothing but layout, spec and device.

    In tile order the image is a row-major sequence of query tiles, each of them two key tiles one after the other,
    each of those row-major: query tile ``i`` is made of the key tiles ``2 * i`` and ``2 * i + 1``. The grid is
    padded at its bottom and right to whole query tiles, and to two of them at least.

    Attributes:
        layout, spec: What the plan was made for.
        upright: Query tiles are 16 x 8 tokens (height x width) where True, 8 x 16 where False.
        tiles: (rows, columns) of query tiles.
        partial: (query tiles, P) key tiles of which some query sees some key; P is the longest list's length.
        partial_count: (query tiles,) int32, how many entries of each row of ``partial`` count; the rest are 0.
        full: (query tiles, F) key tiles of which every query sees every key, as ``partial``.
        full_count: (query tiles,) int32.
        blocks: Number of (query tile, key tile) pairs in both lists together.
    """

    layout: SequenceLayout
    spec: ClearSpec
    upright: bool
    tiles: tuple[int, int]
    partial: Tensor
    partial_count: Tensor
    full: Tensor
    full_count: Tensor
    blocks: int

    @property
    def query_tiles(self) -> int:
        return self.tiles[0] * self.tiles[1]

    @property
    def padded_grid(self) -> tuple[int, int]:
        """(h, w) in tokens of the whole tiles, padding included."""
        height, width = query_tile_size(self.upright)
        return self.tiles[0] * height, self.tiles[1] * width

    @property
    def prefix(self) -> int:
        """Keys in front of the image that every image query sees: text, reference and pooled tokens."""
        rows, cols = self.layout.pooled_grid(self.spec.down_factor)
        return self.layout.text + self.layout.reference + rows * cols

    @property
    def prefix_blocks(self) -> int:
        """Key blocks that the prefix takes; the last one may be padded."""
        return -(-self.prefix // KEY_BLOCK)

    @property
    def block_pairs(self) -> int:
        """Query-key pairs of one block."""
        return QUERY_BLOCK * KEY_BLOCK

    @property
    def nbytes(self) -> int:
        """Memory of the lists."""
        lists = (self.partial, self.partial_count, self.full, self.full_count)
        return sum(one.numel() * one.element_size() for one in lists)


def query_tile_size(upright: bool) -> tuple[int, int]:
    """(height, width) of a query tile in tokens."""
    return (2 * KEY_TILE_SIDE, KEY_TILE_SIDE) if upright else (KEY_TILE_SIDE, 2 * KEY_TILE_SIDE)


@lru_cache(maxsize=16)
def tile_plan(layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> TilePlan:
    """The plan of one layout and spec, its tensors on ``device``. Cached; the result is shared and never changed."""
    upright, tiles = choose_tiles(layout.grid)
    # A plan made under inference_mode would be refused by autograd for the rest of its life in the cache.
    with torch.inference_mode(False):
        rows = _axis_tiles(layout.grid[0], tiles[0], 2 if upright else 1, spec.radius)
        cols = _axis_tiles(layout.grid[1], tiles[1], 1 if upright else 2, spec.radius)
        # (tile rows, tile columns, key rows, key columns)
        nearest = rows.nearest[:, None, :, None] + cols.nearest[None, :, None, :]
        farthest = rows.farthest[:, None, :, None] + cols.farthest[None, :, None, :]
        inside = spec.radius**2
        full = farthest < inside
        partial = (nearest < inside) & ~full
        keys = _key_tile_index(rows.index[:, None, :, None], cols.index[None, :, None, :], tiles[1], upright)
        partial_list, partial_count = _compact(partial.flatten(0, 1).flatten(1), keys.flatten(0, 1).flatten(1))
        full_list, full_count = _compact(full.flatten(0, 1).flatten(1), keys.flatten(0, 1).flatten(1))
        blocks = int(partial_count.sum() + full_count.sum())
        on_device = (one.to(device) for one in (partial_list, partial_count, full_list, full_count))
        return TilePlan(layout, spec, upright, tiles, *on_device, blocks)


def choose_tiles(grid: tuple[int, int]) -> tuple[bool, tuple[int, int]]:
    """(upright, (rows, columns) of query tiles): the orientation that pads the grid least."""
    choices = []
    for upright in (True, False):
        height, width = query_tile_size(upright)
        rows, cols = -(-grid[0] // height), -(-grid[1] // width)
        # A single block would be a case of its own for the compiler.
        choices.append((rows * cols, not upright, (max(rows, 3 - cols), cols)))
    _, lying, tiles = min(choices)
    return not lying, tiles


# Farther than any grid is wide; its square still fits an int32 sum of two.
_FAR = 2**15 - 1


@dataclass(frozen=True)
class _AxisTiles:
    """Key tiles near each query tile along one axis, each (query tiles, candidates) int32.

    Attributes:
        index: Key tile along the axis; 0 where there is none.
        nearest, farthest: Square of the smallest and largest distance in tokens between a query and a key.
    """

    index: Tensor
    nearest: Tensor
    farthest: Tensor


def _axis_tiles(side: int, query_tiles: int, key_tiles_each: int, radius: int) -> _AxisTiles:
    size = KEY_TILE_SIDE * key_tiles_each
    first = torch.arange(query_tiles, dtype=torch.int32, device="cpu") * size
    # Padded queries are no reason to visit a key; a tile of nothing but padding keeps the last token.
    first.clamp_(max=side - 1)
    last = (torch.arange(1, query_tiles + 1, dtype=torch.int32, device="cpu") * size - 1).clamp_(max=side - 1)
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


def _key_tile_index(row: Tensor, col: Tensor, columns: int, upright: bool) -> Tensor:
    """Place in tile order of the key tile at (row, col), in key tiles."""
    if upright:
        return (torch.div(row, 2, rounding_mode="floor") * columns + col) * 2 + row % 2
    return (row * columns + torch.div(col, 2, rounding_mode="floor")) * 2 + col % 2


def _compact(wanted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted keys of each row moved to its front, and their number.

    Args:
        wanted: bool (rows, candidates).
        keys: int32, as ``wanted``.
    """
    place = wanted.cumsum(dim=1, dtype=torch.int32) - 1
    count = place[:, -1] + 1
    small = keys.numel() == 0 or int(keys.max()) < 2**15
    lists = keys.new_zeros(len(keys), max(1, int(count.max())), dtype=torch.int16 if small else torch.int32)
    row, candidate = wanted.nonzero(as_tuple=True)
    lists[row, place[row, candidate].long()] = keys[row, candidate].to(lists.dtype)
    return lists, count
