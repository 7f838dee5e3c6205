"""q, k and v as FLUX.1's blocks hand them over, and how many keys a query sees."""

from __future__ import annotations

import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, cost

from ..flux_step import MLP_RATIO
from .bench import Bench


def model_inputs(layout: SequenceLayout, bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v of one layer, (1, heads, L, D), with the strides of a single block.

    q and k are new tensors after norm and positions, tokens outermost. v is still a part of the block's projection of
    q, k, v and the MLP: its tokens are ``(3 + 4) * width`` numbers apart, 21504 in FLUX.1.
    """
    scale = bench.scale
    shape = (1, layout.length, scale.heads, scale.head_dim)
    q, k = (torch.randn(shape, device=bench.device, dtype=scale.dtype).transpose(1, 2) for _ in range(2))
    return q, k, inside_projection(torch.randn(shape, device=bench.device, dtype=scale.dtype)).transpose(1, 2)


def inside_projection(v: Tensor) -> Tensor:
    """The same numbers as a part of a wider tensor, (B, L, heads, D)."""
    batch, length, heads, head_dim = v.shape
    wide = v.new_empty(batch, length, 3 + MLP_RATIO, heads, head_dim)
    wide[:, :, 2] = v
    return wide[:, :, 2]


def keys_per_query(layout: SequenceLayout, spec: ClearSpec) -> float:
    """Keys that an image query sees, on average: text, reference, pooled, and its window, cut by the border."""
    rows, columns = spec.cells(layout.grid)
    window = cost.window_pairs(layout.grid, spec.radius) / layout.image
    return layout.text + layout.reference + rows * columns + window


def inner_window(spec: ClearSpec) -> int:
    """Keys in a window that no border cuts."""
    side = 2 * spec.radius - 1
    return sum(spec.sees(y - spec.radius + 1, x - spec.radius + 1) for y in range(side) for x in range(side))
