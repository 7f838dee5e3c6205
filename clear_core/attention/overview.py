"""The overview of what is outside a query's window: pooled keys that weigh as much as the tokens they stand for.

A cell of n tokens outside the window adds about ``n * exp(score of its mean key)`` to the softmax's denominator, where
dense attention adds ``exp(score)`` of each. Not from the paper; chosen by ``demo/experiments/hybrid.json``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import ClearSpec
from .budget import queries_at_once
from .call import Attended, AttentionCall
from .fused import is_fused
from .lse import attend_with_lse
from .merge import merge

# Memory in bytes of one query and cell while its tokens are counted.
COUNT_BYTES = 24


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


def outside_bias(call: AttentionCall, queries: slice) -> Tensor:
    """What is added to the scores of pooled keys: (queries, cells) float32, -inf where no token is outside.

    Args:
        queries: Positions in q, of image queries.
    """
    image = torch.arange(
        queries.start - call.layout.text, queries.stop - call.layout.text, dtype=torch.int32, device=call.q.device
    )
    width = call.layout.grid[1]
    y, x = image.div(width, rounding_mode="floor") + call.query_rows.start, image.remainder(width)
    return tokens_outside(y, x, call.layout.grid, call.spec).float().log()


def merge_outside(call: AttentionCall, keys: Tensor, values: Tensor, windows: Attended) -> None:
    """Adds the pooled keys to the result of the windows, in place, some queries at a time.

    Args:
        keys, values: (B, heads, cells, D).
        windows: Result of the call's windows, with the log-sum-exp.
    """
    out, lse = windows
    assert lse is not None
    q, image = call.q, call.image_queries
    cells = keys.shape[2]
    fused = is_fused(q.device, q.dtype, q.shape[-1], True)
    at_once = queries_at_once(q.device, q.shape[0] * q.shape[1] * cells, call.chunk_limit, fused)
    # Besides the counts, the results of both parts and of the whole in float32.
    per_query = COUNT_BYTES * cells + 12 * q.shape[0] * q.shape[1] * q.shape[3]
    step = min(at_once, max(1, call.chunk_limit // per_query))
    for start in range(image.start, image.stop, step):
        rows = slice(start, min(start + step, image.stop))
        bias = outside_bias(call, rows).to(q.dtype)[None, None]
        if call.bias is not None:
            # A row's value for all image keys is the pooled ones' too.
            bias = bias + call.bias.rows(rows, q.dtype, cells)[..., -cells:]
        # No kernel is asked about a query that sees no key, whose gradient would not be a number.
        nothing = bias.amax(dim=-1) == float("-inf")
        bias = bias.masked_fill(nothing[..., None], 0.0)
        pooled, sums = attend_with_lse(
            q[:, :, rows], keys, values, scale=call.scale, mask=bias, needs_grad=call.needs_grad, sees_some=True
        )
        # Clones, since gradients want what is written over here. The windows too may be without keys, by a mask.
        own, own_sums = out[:, :, rows].clone(), lse[:, :, rows].clone()
        some_sums = own_sums.masked_fill(nothing & (own_sums == float("-inf")), 0.0)
        out[:, :, rows], whole = merge(own, some_sums, pooled, sums.masked_fill(nothing, float("-inf")))
        lse[:, :, rows] = torch.where(nothing, own_sums, whole)
        call.on_chunk()
