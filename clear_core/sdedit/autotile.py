"""Chooses between the whole frame and tiles, by a fixed rule, so that the same seed gives the same image."""

from __future__ import annotations

from dataclasses import replace

from ..call_memory import MemoryPlan
from ..families import FLUX1
from ..frame_units import FrameUnits
from .tiles import DEFAULT_OVERLAP, TileLayout

LEAST_GAIN = 0.9
"""Share of the memory that smaller tiles must get below where none are small enough to fit."""


def choose_tiles(
    grid: tuple[int, int],
    *,
    tile_height: int = 0,
    tile_width: int = 0,
    overlap: int = DEFAULT_OVERLAP,
    memory: MemoryPlan,
    total: int,
    batch: int = 1,
    units: FrameUnits = FLUX1.units,
) -> TileLayout:
    """The tiles of a frame: of the given sides, or as few as fit the budget.

    Args:
        grid: (rows, columns) of the frame in units.
        tile_height, tile_width: In px; 0 is automatic, for each side separately.
        overlap: In px.
        memory: Of the calls that the tiles' images are in.
        total: Bytes of the card.
        batch: Images in one call.
        units: How the model's frame is made.

    Raises:
        ValueError: The given tiles are too small, or the overlap is too large.
    """
    whole = (grid[0] * units.pixels, grid[1] * units.pixels)
    fixed = TileLayout.of_pixels(grid, tile_height or whole[0], tile_width or whole[1], overlap, units)
    automatic = [axis for axis, wanted in enumerate((tile_height, tile_width)) if not wanted]
    for axis, (name, value) in enumerate((("tile_height", tile_height), ("tile_width", tile_width))):
        most = None if axis in automatic or units.may_be_longer else units.most_units
        if most is not None and fixed.tile[axis] > most:
            raise ValueError(
                f"{name} is {value}, but the model has positions for {most * units.pixels} px a side; set "
                f"{name} to at most that, or to 0 for automatic."
            )
    if not automatic:
        return fixed
    return replace(fixed, tile=fitting_sides(fixed, automatic, memory, total, batch))


def fitting_sides(
    first: TileLayout, automatic: list[int], memory: MemoryPlan, total: int, batch: int
) -> tuple[int, int]:
    """Sides in units of the fewest tiles that fit the budget and the model's longest side.

    Args:
        first: The frame, and the sides to begin with.
        automatic: Axes that may be split (0: rows).
        memory, total, batch: As in :func:`choose_tiles`.

    Raises:
        ValueError: The overlap is too large for tiles that the model takes.
    """
    grid, shared, units = first.grid, first.overlap, first.units
    budget = memory.budget(total)
    # What the prompt brings along (references) may be too much by itself: tiles can only lower the rest.
    can_fit = memory.peak_bytes(0, batch) <= budget
    counts = [1, 1]
    sides, peak = first.tile, memory.peak_bytes(units.tokens(first.tile), batch)
    while True:
        too_long = [axis for axis in automatic if units.most_units is not None and sides[axis] > units.most_units]
        if not too_long and peak <= budget:
            return sides
        # If both sides are automatic, the longer one is split: nearly square tiles have the shortest borders.
        axis = max(too_long or automatic, key=lambda axis: sides[axis])
        counts[axis] += 1
        side = split_side(grid[axis], counts[axis], shared)
        if side < max(2 * shared, 2):
            if too_long:
                raise ValueError(
                    f"tile_overlap is {shared * units.pixels} px, more than half of the longest tile that the model "
                    f"takes; set tile_overlap to at most {(units.most_units or 0) // 2 * units.pixels}."
                )
            return sides  # Smaller tiles could not be blended; the call may still fit: the budget is an estimate.
        smaller = (side, sides[1]) if axis == 0 else (sides[0], side)
        lower = memory.peak_bytes(units.tokens(smaller), batch)
        if not can_fit and not too_long and lower > LEAST_GAIN * peak:
            return sides
        sides, peak = smaller, lower


def split_side(whole: int, count: int, overlap: int) -> int:
    """Side of ``count`` tiles that cover ``whole`` and share at least ``overlap``."""
    return -(-(whole + (count - 1) * overlap) // count)
