"""The 2-D tile order of image tokens.

A block-sparse kernel works on blocks of queries times blocks of keys. In row-major order a block is a strip of one
row and touches far more keys than its windows ask for; in tile order it is a small rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEY_TILE_SIDE = 8
KEY_BLOCK = KEY_TILE_SIDE**2
"""Tokens of a key tile, 8 x 8; one block of keys for the kernel."""

QUERY_BLOCK = 2 * KEY_BLOCK
"""Tokens of a query tile, two adjacent key tiles (16 x 8 or 8 x 16); one block of queries for the kernel."""


@dataclass(frozen=True)
class TileOrder:
    """How the tokens of a grid lie in tile order.

    A row-major sequence of query tiles, each of them two key tiles one after the other, each of those row-major: query
    tile ``i`` consists of the key tiles ``2 * i`` and ``2 * i + 1``. The grid is padded at its bottom and right to
    whole query tiles.

    Attributes:
        grid: (h, w) in tokens.
        upright: Query tiles are 16 x 8 tokens (height x width) if True, 8 x 16 if False.
        tiles: (rows, columns) of query tiles, two of them at least.
    """

    grid: tuple[int, int]
    upright: bool
    tiles: tuple[int, int]

    @classmethod
    def of(cls, grid: tuple[int, int], upright: bool) -> TileOrder:
        """The order of a grid for one orientation of its query tiles."""
        height, width = query_tile_size(upright)
        rows, cols = -(-grid[0] // height), -(-grid[1] // width)
        # A single block would be a case of its own for the compiler.
        return cls(grid, upright, (max(rows, 3 - cols), cols))

    @classmethod
    def least_padding(cls, grid: tuple[int, int]) -> TileOrder:
        """The order whose orientation pads the grid least."""
        upright, lying = cls.of(grid, True), cls.of(grid, False)

        def real_tiles(order: TileOrder) -> int:
            height, width = query_tile_size(order.upright)
            return -(-grid[0] // height) * -(-grid[1] // width)

        return lying if real_tiles(lying) < real_tiles(upright) else upright

    @property
    def query_tiles(self) -> int:
        """Number of query tiles."""
        return self.tiles[0] * self.tiles[1]

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.query_tiles * QUERY_BLOCK

    def row_and_column(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(row, column) of key tiles in the grid of key tiles, int32, from their indices in tile order."""
        tiles = tiles.to(torch.int32)
        query_tile, second = tiles // 2, tiles % 2
        row, col = query_tile // self.tiles[1], query_tile % self.tiles[1]
        return (row * 2 + second, col) if self.upright else (row, col * 2 + second)


def query_tile_size(upright: bool) -> tuple[int, int]:
    """(height, width) of a query tile in tokens."""
    return (2 * KEY_TILE_SIDE, KEY_TILE_SIDE) if upright else (KEY_TILE_SIDE, 2 * KEY_TILE_SIDE)
