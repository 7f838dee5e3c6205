"""Whole frame or tiles, and of which size: a fixed rule, so that the same seed gives the same picture."""

from __future__ import annotations

from ..memory import FLUX_TEXT, Activations
from .tiles import TileLayout, overlap_tokens


def choose_tiles(
    grid: tuple[int, int],
    *,
    tile_height: int = 0,
    tile_width: int = 0,
    overlap: int = 128,
    activations: Activations,
    budget: int,
    batch: int = 1,
) -> TileLayout:
    """The tiles of a frame: those asked for, or as few as fit the budget.

    Args:
        grid: (rows, columns) of the frame in tokens.
        tile_height, tile_width: In px; 0 is automatic, on each side of its own.
        overlap: In px.
        activations: Of the model.
        budget: Bytes that one call may take, from :func:`clear_core.memory.activation_budget`.
        batch: Sequences in one call.

    Raises:
        ValueError: Tiles that were asked for are too small, or the overlap too large.
    """
    if tile_height and tile_width:
        return TileLayout.of_pixels(grid, tile_height, tile_width, overlap)
    shared = overlap_tokens(overlap)
    fixed = TileLayout.of_pixels(grid, tile_height or grid[0] * 16, tile_width or grid[1] * 16, overlap).tile
    counts = [1, 1]
    automatic = [axis for axis, wanted in enumerate((tile_height, tile_width)) if not wanted]
    while True:
        sides = [
            fixed[axis] if axis not in automatic else split_side(grid[axis], counts[axis], shared) for axis in (0, 1)
        ]
        if activations.peak_bytes(sides[0] * sides[1] + FLUX_TEXT, batch=batch) <= budget:
            break
        # Where several sides can give way, the longer one does: tiles near a square have the shortest borders.
        axis = max(automatic, key=lambda axis: sides[axis])
        if split_side(grid[axis], counts[axis] + 1, shared) < max(2 * shared, 2):
            break  # Nothing smaller can be blended; the host may still manage.
        counts[axis] += 1
    return TileLayout(grid, (sides[0], sides[1]), shared)


def split_side(whole: int, count: int, overlap: int) -> int:
    """Tokens of one side of ``count`` tiles that cover ``whole`` tokens with at least ``overlap`` shared."""
    return -(-(whole + (count - 1) * overlap) // count)
