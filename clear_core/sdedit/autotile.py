"""Chooses between the whole frame and tiles, by a fixed rule, so that the same seed gives the same image."""

from __future__ import annotations

from ..layout import TOKEN_PIXELS
from ..memory import FLUX_TEXT, Activations
from .tiles import DEFAULT_OVERLAP, TileLayout, overlap_tokens


def choose_tiles(
    grid: tuple[int, int],
    *,
    tile_height: int = 0,
    tile_width: int = 0,
    overlap: int = DEFAULT_OVERLAP,
    activations: Activations,
    budget: int,
    batch: int = 1,
) -> TileLayout:
    """The tiles of a frame: of the given sides, or as few as fit the budget.

    Args:
        grid: (rows, columns) of the frame in tokens.
        tile_height, tile_width: In px; 0 is automatic, for each side separately.
        overlap: In px.
        activations: Activations of the model.
        budget: Bytes for one call, from :func:`clear_core.memory.activation_budget`.
        batch: Sequences in one call.

    Raises:
        ValueError: The given tiles are too small, or the overlap is too large.
    """
    if tile_height and tile_width:
        return TileLayout.of_pixels(grid, tile_height, tile_width, overlap)
    shared = overlap_tokens(overlap)
    whole = (grid[0] * TOKEN_PIXELS, grid[1] * TOKEN_PIXELS)
    fixed = TileLayout.of_pixels(grid, tile_height or whole[0], tile_width or whole[1], overlap).tile
    counts = [1, 1]
    automatic = [axis for axis, wanted in enumerate((tile_height, tile_width)) if not wanted]
    while True:
        sides = [
            fixed[axis] if axis not in automatic else split_side(grid[axis], counts[axis], shared) for axis in (0, 1)
        ]
        if activations.peak_bytes(sides[0] * sides[1] + FLUX_TEXT, batch=batch) <= budget:
            break
        # If both sides are automatic, the longer one is split: nearly square tiles have the shortest borders.
        axis = max(automatic, key=lambda axis: sides[axis])
        if split_side(grid[axis], counts[axis] + 1, shared) < max(2 * shared, 2):
            break  # Smaller tiles could not be blended; the call may still fit, since the budget is an estimate.
        counts[axis] += 1
    return TileLayout(grid, (sides[0], sides[1]), shared)


def split_side(whole: int, count: int, overlap: int) -> int:
    """Side in tokens of ``count`` tiles that cover ``whole`` tokens and share at least ``overlap``."""
    return -(-(whole + (count - 1) * overlap) // count)
