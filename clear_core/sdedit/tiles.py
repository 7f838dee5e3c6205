"""Overlapping tiles over a frame, and the blending of their predictions.

All sizes are whole units of the model's frame, so that a tile's tokens are the frame's own and keep their positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..families import FLUX1
from ..frame_units import FrameUnits
from ..number_checks import check_number

DEFAULT_OVERLAP = 128
"""Overlap of neighbouring tiles in px if nobody sets one."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of units: its upper left corner and its sides.

    Attributes:
        cells: Side of a unit in latent cells.
    """

    y: int
    x: int
    height: int
    width: int
    cells: int = FLUX1.units.cells

    @property
    def latents(self) -> tuple[slice, slice]:
        """The same rectangle in a latent, (rows, columns)."""
        return (
            slice(self.cells * self.y, self.cells * (self.y + self.height)),
            slice(self.cells * self.x, self.cells * (self.x + self.width)),
        )


@dataclass(frozen=True)
class TileLayout:
    """Tiles of one size that cover a frame.

    Attributes:
        grid: (rows, columns) of the frame in units.
        tile: (rows, columns) of a tile, at most the frame's.
        overlap: Least number of units that neighbours share; at most half the side of a tile if there are several.
        skipped: Tiles that nobody needs; the others keep their places and weights.
        units: How the model's frame is made.
    """

    grid: tuple[int, int]
    tile: tuple[int, int]
    overlap: int
    skipped: frozenset[Tile] = frozenset()
    units: FrameUnits = FLUX1.units

    @classmethod
    def of_pixels(
        cls, grid: tuple[int, int], tile_height: int, tile_width: int, overlap: int, units: FrameUnits = FLUX1.units
    ) -> TileLayout:
        """Tiles with sides given in px, rounded to whole units.

        Raises:
            ValueError: A number is not whole, a tile is under two units, or the overlap is more than half of it.
        """
        check_number("tile_overlap", overlap, 0, whole=True)
        sides: list[int] = []
        for name, value, whole in (("tile_height", tile_height, grid[0]), ("tile_width", tile_width, grid[1])):
            check_number(name, value, 0, whole=True)
            side = min(round(value / units.pixels), whole)
            if side < min(2, whole):
                raise ValueError(f"{name} is {value}; expected at least {2 * units.pixels} px, or 0 for automatic.")
            sides.append(side)
        shared = overlap_units(overlap, units)
        for name, side, whole in (("tile_height", sides[0], grid[0]), ("tile_width", sides[1], grid[1])):
            if side < whole and 2 * shared > side:
                raise ValueError(
                    f"tile_overlap is {overlap} px, more than half of {name} {side * units.pixels}; "
                    f"set tile_overlap to at most {side // 2 * units.pixels}."
                )
        return cls(grid, (sides[0], sides[1]), shared, units=units)

    @property
    def is_whole(self) -> bool:
        """Whether one tile covers the frame."""
        return self.tile == self.grid

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles that are computed, row by row."""
        every = (Tile(y, x, *self.tile, self.units.cells) for y in self.starts(0) for x in self.starts(1))
        return tuple(tile for tile in every if tile not in self.skipped)

    def needed_for(self, wanted: Tensor) -> TileLayout:
        """The layout without the tiles in which nothing is wanted; all of them if nothing is wanted at all.

        Every place that is wanted keeps each tile that covers it, and so its prediction.

        Args:
            wanted: (..., H, W) latents of the frame, not 0 where a prediction is wanted.
        """
        places = wanted.flatten(0, -3).any(0)
        skipped = frozenset(tile for tile in self.tiles if not places[tile.latents].any())
        return self if len(skipped) == len(self.tiles) else replace(self, skipped=self.skipped | skipped)

    def starts(self, axis: int) -> tuple[int, ...]:
        """First unit of each tile along one axis (0: rows), evenly spread from border to border."""
        whole, side = self.grid[axis], self.tile[axis]
        count = tile_count(whole, side, self.overlap)
        return tuple(round(i * (whole - side) / max(1, count - 1)) for i in range(count))

    @cached_property
    def axis_weights(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """For each axis, by a tile's first unit: (tile side,) float32 in latent cells.

        1, falling smoothly to near 0 over what is shared with a neighbour; along the axis they sum to 1.
        """
        return self._weights_along(0), self._weights_along(1)

    def _weights_along(self, axis: int) -> dict[int, Tensor]:
        cells = self.units.cells
        starts, side = self.starts(axis), cells * self.tile[axis]
        total = torch.zeros(cells * self.grid[axis])
        weights: dict[int, Tensor] = {}
        for number, start in enumerate(starts):
            weight = torch.ones(side)
            if number > 0:
                ramp = falling(side - cells * (start - starts[number - 1]))
                weight[: len(ramp)] *= ramp.flip(0)
            if number < len(starts) - 1:
                ramp = falling(side - cells * (starts[number + 1] - start))
                weight[side - len(ramp) :] *= ramp
            total[cells * start : cells * start + side] += weight
            weights[start] = weight
        # Even spacing can make a tile overlap the next but one; two ramps do not add up to 1 there.
        return {start: weight / total[cells * start : cells * start + side] for start, weight in weights.items()}

    def weight(self, tile: Tile) -> Tensor:
        """(1, 1, rows, columns) float32 in latent cells: weight of a tile's prediction. Over the frame: 1."""
        rows, columns = self.axis_weights[0][tile.y], self.axis_weights[1][tile.x]
        return (rows[:, None] * columns)[None, None]


def overlap_units(overlap: int, units: FrameUnits) -> int:
    """Units of an overlap in px, rounded up."""
    return -(-overlap // units.pixels)


def tile_count(whole: int, side: int, overlap: int) -> int:
    """Number of tiles along one axis; arguments in units."""
    return 1 if side >= whole else math.ceil((whole - overlap) / (side - overlap))


def falling(length: int) -> Tensor:
    """(length,) from near 1 to near 0 along a half cosine wave; it and its mirror image sum to 1."""
    return (1 + torch.cos((torch.arange(length) + 0.5) * math.pi / length)) / 2
