"""The overview of what is outside a query's window: pooled keys that weigh as much as the tokens they stand for.

A cell of n tokens outside the window adds about ``n * exp(score of its mean key)`` to the softmax's denominator, where
dense attention adds ``exp(score)`` of each. Not from the paper; chosen by ``demo/experiments/hybrid.json``.

Here it is counted token by token, for the reference. All else looks it up in :mod:`.overview_table`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import ClearSpec
from .bias import ImageBias
from .call import AttentionCall


def tokens_outside(y: Tensor, x: Tensor, grid: tuple[int, int], spec: ClearSpec) -> Tensor:
    """How many tokens of each pooled cell lie outside the windows of some queries.

    Args:
        y, x: (queries,) int32, their rows and columns.
        grid: (h, w) in tokens.
        spec: Window and down factor.

    Returns:
        (queries, cells) int32, 0 to ``down_factor ** 2``; cells row by row.
    """
    d, (height, width) = spec.down_factor, grid
    rows, columns = spec.cells(grid)
    tops, lefts = (d * torch.arange(count, dtype=torch.int32, device=y.device) for count in (rows, columns))
    outside = y.new_zeros(len(y), rows, columns)
    for i in range(d):
        for j in range(d):
            key_y, key_x = tops + i, lefts + j
            there = (key_y < height)[:, None] & (key_x < width)
            seen = spec.sees((key_y - y[:, None])[:, :, None], (key_x - x[:, None])[:, None])
            outside += there & ~seen
    return outside.flatten(1)


def masked_outside(added: Tensor, y: Tensor, x: Tensor, grid: tuple[int, int], spec: ClearSpec) -> Tensor:
    """What a cell weighs under a mask: log of the sum, over its tokens outside the window, of ``exp(added)``.

    Without a mask this is the logarithm of their number; with cells of one token it is the mask.

    Args:
        added: (B, heads, queries, h * w), the mask as it is added to the scores.
        y, x: (queries,) int32, rows and columns of the queries.
        grid: (h, w) in tokens.
        spec: Window and down factor.

    Returns:
        (B, heads, queries, cells) float32.
    """
    d, (height, width) = spec.down_factor, grid
    rows, columns = spec.cells(grid)
    key_y, key_x = (torch.arange(side, dtype=torch.int32, device=y.device) for side in grid)
    seen = spec.sees((key_y - y[:, None])[:, :, None], (key_x - x[:, None])[:, None])
    outside = added.float().unflatten(-1, grid).masked_fill(seen, float("-inf"))
    outside = F.pad(outside, (0, columns * d - width, 0, rows * d - height), value=float("-inf"))
    return outside.unflatten(-1, (columns, d)).unflatten(-3, (rows, d)).logsumexp(dim=(-3, -1)).flatten(-2)


def outside_bias(call: AttentionCall, queries: slice) -> Tensor:
    """What is added to the scores of pooled keys beside what a mask adds to all image keys alike.

    Args:
        queries: Positions in q, of image queries.

    Returns:
        (queries, cells) or (B|1, heads|1, queries, cells) float32, -inf where no token is outside.
    """
    image = torch.arange(
        queries.start - call.layout.text, queries.stop - call.layout.text, dtype=torch.int32, device=call.q.device
    )
    width = call.layout.grid[1]
    y, x = image.div(width, rounding_mode="floor") + call.query_rows.start, image.remainder(width)
    if call.bias is not None and call.bias.image is ImageBias.PER_PAIR:
        return masked_outside(call.bias.image_rows(queries), y, x, call.layout.grid, call.spec)
    return tokens_outside(y, x, call.layout.grid, call.spec).float().log()
