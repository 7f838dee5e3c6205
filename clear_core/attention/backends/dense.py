"""The plain, exact backend: scaled dot-product attention with the mask written out. It defines what is right.

Runs on any device and dtype that torch's attention knows; its cost is quadratic, its mask is built for a band
of image rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from ..bias import AttentionBias
from ..pool import pool_tokens

# Numbers in one boolean mask, or in one block of scores: 64 MiB and 256 MiB; a few image rows at 4K.
MASK_NUMBERS = 2**26


def image_rows_mask(rows: range, layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> Tensor:
    """What the image queries of some rows see, written out.

    Args:
        rows: Image rows of the queries.

    Returns:
        bool (len(rows) * w, T + N + R + pooled), True where the key is seen.
    """
    height, width = layout.grid
    ys = torch.arange(height, device=device)
    xs = torch.arange(width, device=device)
    dy = torch.arange(rows.start, rows.stop, device=device)[:, None] - ys
    dx = xs[:, None] - xs
    window = dy.square()[:, None, :, None] + dx.square()[None, :, None, :] < spec.radius**2
    window = window.flatten(0, 1).flatten(1)
    pooled_rows, pooled_cols = layout.pooled_grid(spec.down_factor)
    text = window.new_ones(window.shape[0], layout.text)
    rest = window.new_ones(window.shape[0], layout.reference + pooled_rows * pooled_cols)
    return torch.cat([text, window, rest], dim=1)


def log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Log of the softmax denominators, (B, heads, queries) float32."""
    step = max(1, MASK_NUMBERS // (q.shape[0] * q.shape[1] * k.shape[2]))
    keys = k.float().transpose(-1, -2)
    sums = []
    for start in range(0, q.shape[2], step):
        scores = (q[:, :, start : start + step].float() @ keys) * scale
        if mask is not None:
            part = mask[..., start : start + step, :]
            scores = scores.masked_fill(~part, float("-inf")) if mask.dtype == torch.bool else scores + part
        sums.append(scores.logsumexp(dim=-1))
    return torch.cat(sums, dim=2)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: SequenceLayout,
    spec: ClearSpec,
    spatial_weight: Tensor | None,
    scale: float,
    bias: AttentionBias | None = None,
    chunk_bytes: int | None = None,
    on_chunk: Callable[[], None] | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """CLEAR attention by the book; arguments as in :func:`clear_core.clear_attention`, already checked.

    Args:
        spatial_weight: (d, d), or None when ``spec`` does not pool.
    """
    image = layout.image_slice
    windowed = spec.pools or not spec.covers(layout.grid)
    # Text and reference queries see every token of the sequence; so do image queries whose window covers the grid.
    outside = [slice(0, image.start), slice(image.stop, layout.length)] if windowed else [slice(0, layout.length)]
    masks = 1 if bias is None else bias.masks
    numbers = max(1, (MASK_NUMBERS if chunk_bytes is None else chunk_bytes // (1 + q.element_size())) // masks)
    if bias is not None:
        step = max(1, numbers // layout.length)
        outside = [slice(i, min(i + step, one.stop)) for one in outside for i in range(one.start, one.stop, step)]
    pieces = [(one, None) for one in outside]
    if windowed:
        height, width = layout.grid
        k_all, v_all = k, v
        if spec.pools:
            k_all = torch.cat([k, pool_tokens(k[:, :, image], layout.grid, spatial_weight)], dim=2)
            v_all = torch.cat([v, pool_tokens(v[:, :, image], layout.grid, spatial_weight)], dim=2)
        # The mask is held as booleans, and as the numbers in q's dtype that attention makes of them.
        band = max(1, numbers // (width * k_all.shape[2]))
        bands = [range(y, min(y + band, height)) for y in range(0, height, band)]
        pieces += [(slice(image.start + r.start * width, image.start + r.stop * width), r) for r in bands]

    outs, sums = [], []
    for queries, rows in sorted(pieces, key=lambda piece: piece[0].start):
        if queries.start == queries.stop:
            continue
        mask = None if rows is None else image_rows_mask(rows, layout, spec, q.device)
        if bias is not None:
            added = bias.rows(queries, q.dtype, 0 if rows is None else k_all.shape[2] - layout.length)
            mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
        keys, values = (k, v) if rows is None else (k_all, v_all)
        outs.append(F.scaled_dot_product_attention(q[:, :, queries], keys, values, attn_mask=mask, scale=scale))
        if return_lse:
            sums.append(log_sum_exp(q[:, :, queries], keys, scale, mask))
        if on_chunk is not None:
            on_chunk()
    out = torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]
    return (out, torch.cat(sums, dim=2)) if return_lse else out
