"""Tokens into the 2-D tile order of :mod:`.plan` and back: views and one copy, no index tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .plan import KEY_TILE_SIDE, TilePlan


def copy_to_tiles(tokens: Tensor, tiled: Tensor, plan: TilePlan) -> None:
    """Row-major (B, heads, h * w, D) into tile order (B, heads, query tiles * 128, D)."""
    grid, padded = plan.layout.grid, plan.padded_grid
    image = tokens.unflatten(2, grid)
    if grid != padded:
        image = F.pad(image, (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0]))
    _as_grid(tiled, plan).copy_(_split_grid(image, plan))


def copy_from_tiles(tiled: Tensor, tokens: Tensor, plan: TilePlan) -> None:
    """Tile order (B, heads, query tiles * 128, D) into row-major (B, heads, h * w, D); padding is dropped."""
    grid, padded = plan.layout.grid, plan.padded_grid
    image = _as_grid(tiled, plan)
    if grid == padded:
        _split_grid(tokens.unflatten(2, grid), plan).copy_(image)
    else:
        whole = image.reshape(*tokens.shape[:2], *padded, tokens.shape[-1])
        tokens.unflatten(2, grid).copy_(whole[:, :, : grid[0], : grid[1]])


def _split_grid(image: Tensor, plan: TilePlan) -> Tensor:
    """(B, heads, H, W, D) with both sides split into tiles, rows of them first."""
    rows, cols = plan.tiles
    side = KEY_TILE_SIDE
    height, width = ((rows, 2, side), (cols, side)) if plan.upright else ((rows, side), (cols, 2, side))
    return image.unflatten(3, width).unflatten(2, height)


def _as_grid(tiled: Tensor, plan: TilePlan) -> Tensor:
    """Tile order seen as ``_split_grid`` lays out a grid."""
    side = KEY_TILE_SIDE
    parts = tiled.unflatten(2, (*plan.tiles, 2, side, side))
    return parts.permute(0, 1, 2, 4, 5, 3, 6, 7) if plan.upright else parts.permute(0, 1, 2, 5, 3, 4, 6, 7)
