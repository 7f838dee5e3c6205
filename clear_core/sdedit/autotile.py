"""Chooses between the whole frame and tiles, by a fixed rule, so that the same seed gives the same image."""

from __future__ import annotations

from ..call_memory import MemoryPlan
from ..layout import TOKEN_PIXELS
from .tiles import DEFAULT_OVERLAP, TileLayout, overlap_tokens

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
) -> TileLayout:
    """The tiles of a frame: of the given sides, or as few as fit the budget.

    Args:
        grid: (rows, columns) of the frame in tokens.
        tile_height, tile_width: In px; 0 is automatic, for each side separately.
        overlap: In px.
        memory: Of the calls that the tiles' images are in.
        total: Bytes of the card.
        batch: Images in one call.

    Raises:
        ValueError: The given tiles are too small, or the overlap is too large.
    """
    if tile_height and tile_width:
        return TileLayout.of_pixels(grid, tile_height, tile_width, overlap)
    shared = overlap_tokens(overlap)
    whole = (grid[0] * TOKEN_PIXELS, grid[1] * TOKEN_PIXELS)
    fixed = TileLayout.of_pixels(grid, tile_height or whole[0], tile_width or whole[1], overlap).tile
    automatic = [axis for axis, wanted in enumerate((tile_height, tile_width)) if not wanted]
    budget = memory.budget(total)
    # What the prompt brings along (references) may be too much by itself: tiles can only lower the rest.
    can_fit = memory.peak_bytes(0, batch) <= budget
    counts = [1, 1]
    sides, peak = fixed, memory.peak_bytes(fixed[0] * fixed[1], batch)
    while peak > budget:
        # If both sides are automatic, the longer one is split: nearly square tiles have the shortest borders.
        axis = max(automatic, key=lambda axis: sides[axis])
        counts[axis] += 1
        side = split_side(grid[axis], counts[axis], shared)
        if side < max(2 * shared, 2):
            break  # Smaller tiles could not be blended; the call may still fit, since the budget is an estimate.
        smaller = (side, sides[1]) if axis == 0 else (sides[0], side)
        lower = memory.peak_bytes(smaller[0] * smaller[1], batch)
        if not can_fit and lower > LEAST_GAIN * peak:
            break
        sides, peak = smaller, lower
    return TileLayout(grid, sides, shared)


def split_side(whole: int, count: int, overlap: int) -> int:
    """Side in tokens of ``count`` tiles that cover ``whole`` tokens and share at least ``overlap``."""
    return -(-(whole + (count - 1) * overlap) // count)
