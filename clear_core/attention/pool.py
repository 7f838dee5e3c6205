"""Pooled keys and values of the down-sampled variants (paper, section 3.3; reference ``spatial_weight``)."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_weight(down_factor: int) -> Tensor:
    """The untrained ``spatial_weight``: a plain mean over the cell, (d, d) float32."""
    return torch.full((down_factor, down_factor), 1.0 / down_factor**2)


def blend_with_mean(weight: Tensor, strength: float) -> Tensor:
    """A (d, d) ``spatial_weight`` at less than full strength: 0 is the plain mean, 1 the weight itself."""
    return torch.lerp(mean_weight(weight.shape[0]), weight.float().cpu(), strength)


def has_cut_cells(grid: tuple[int, int], down_factor: int) -> bool:
    """Whether the border of a grid cuts some of its cells."""
    return any(side % down_factor for side in grid)


def border_gain(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """What a cell's sum is multiplied with so that a cut cell keeps the total weight of a whole one.

    Args:
        weight: (d, d) float32.
        grid: (h, w) in tokens.

    Returns:
        (ceil(h/d), ceil(w/d)); exactly 1 where the cell is whole.
    """
    d = weight.shape[0]
    rows, cols = (-(-side // d) for side in grid)
    # Of each cell the sum of the weights that are there, and of their magnitudes.
    in_rows, in_cols = (
        torch.arange(count * d, device=weight.device).view(count, d) < side
        for count, side in zip((rows, cols), grid, strict=True)
    )
    # No matrix product: a card may be set to take one in fewer digits.
    there = (in_rows[:, None, :, None] & in_cols[None, :, None, :]) * torch.stack([weight, weight.abs()])[:, None, None]
    signed, magnitude = there.sum(dim=(-2, -1))
    # Weights of both signs may cancel in what is left of a cut cell; without a bound its key would blow up. Weights
    # of one sign never reach the bound.
    bound = d * d * weight.abs().sum() / magnitude
    gain = (weight.sum() / signed).clamp(-bound, bound).nan_to_num(1.0, 1.0, 1.0)
    gain[: grid[0] // d, : grid[1] // d] = 1.0
    return gain


def pool_tokens(tokens: Tensor, grid: tuple[int, int], weight: Tensor, gain: Tensor | None = None) -> Tensor:
    """Weighted sum of image keys or values over d x d cells.

    Args:
        tokens: (B, heads, h * w, D), row-major, after norm and RoPE.
        grid: (h, w) in tokens; d need not divide it.
        weight: (d, d) ``spatial_weight``, any dtype and device.
        gain: :func:`border_gain`, if it is there already.

    Returns:
        (B, heads, ceil(h/d) * ceil(w/d), D) in the dtype of ``tokens``, summed in float32.
    """
    weight = weight.to(tokens.device, torch.float32)
    d = weight.shape[0]
    image = tokens.unflatten(2, grid)
    cells = [-(-side // d) for side in grid]
    summed = torch.zeros(*tokens.shape[:2], *cells, tokens.shape[-1], dtype=torch.float32, device=tokens.device)
    for i in range(d):
        for j in range(d):
            part = image[:, :, i::d, j::d]
            if part.numel():
                summed[:, :, : part.shape[2], : part.shape[3]].addcmul_(part, weight[i, j])
    if has_cut_cells(grid, d):
        summed = summed * (border_gain(weight, grid) if gain is None else gain)[..., None]
    return summed.to(tokens.dtype).flatten(2, 3)
