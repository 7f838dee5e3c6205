"""The reference: dense attention with the mask written out. It defines what is right.

Runs on any device and dtype that torch's attention knows; its cost is quadratic, its mask is built for a band
of image rows at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from ..bias import additive
from ..call import Attended, AttentionCall, CallKind, head_groups
from ..fused import SCORE_BYTES, plain
from ..lse import log_sum_exp
from ..overview import outside_bias

# Elements in one boolean mask: 64 MiB; a few image rows at 4K.
MASK_ELEMENTS = 2**26


def image_rows_mask(rows: range, layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> Tensor:
    """The mask of the image queries of some rows.

    Args:
        rows: Image rows of the queries.

    Returns:
        bool (len(rows) * w, T + N + R + pooled), True if the key is seen.
    """
    height, width = layout.grid
    ys = torch.arange(height, device=device)
    xs = torch.arange(width, device=device)
    dy = torch.arange(rows.start, rows.stop, device=device)[:, None] - ys
    dx = xs[:, None] - xs
    window = spec.sees(dy[:, None, :, None], dx[None, :, None, :]).flatten(0, 1).flatten(1)
    pooled_rows, pooled_cols = spec.cells(layout.grid)
    text = window.new_ones(window.shape[0], layout.text)
    rest = window.new_ones(window.shape[0], layout.reference + pooled_rows * pooled_cols)
    return torch.cat([text, window, rest], dim=1)


class DenseBackend:
    """CLEAR attention by the book."""

    name = "dense"
    title = "Dense attention"
    instead = "dense attention"
    takes_bias = True
    compiled = False

    def unavailable(self, kind: CallKind) -> str | None:
        return None

    def preferred(self, kind: CallKind) -> str | None:
        if not kind.spec.is_dense(kind.grid):
            return None
        return f"Every window covers the grid of {kind.grid[0]} x {kind.grid[1]} tokens, so attention is ordinary."

    def run(self, call: AttentionCall) -> Attended:
        pooled = call.pooled()
        keys = call.layout.length + (0 if pooled is None else pooled[0].shape[2])
        groups = head_groups(call.q.shape[1], _heads_at_once(call, keys))
        if len(groups) == 1:
            return self._run_heads(call, pooled)
        result = call.empty_result()
        for heads in groups:
            part = self._run_heads(call.of_heads(heads), pooled and (pooled[0][:, heads], pooled[1][:, heads]))
            for whole, own in zip(result.of_heads(heads), part, strict=True):
                if whole is not None and own is not None:
                    whole.copy_(own)
        return result

    def _run_heads(self, call: AttentionCall, pooled: tuple[Tensor, Tensor] | None) -> Attended:
        plain_keys, plain_values = plain(call.k), plain(call.v)
        keys, values = plain_keys, plain_values
        if pooled is not None:
            keys, values = torch.cat([keys, pooled[0]], dim=2), torch.cat([values, pooled[1]], dim=2)
        outs: list[Tensor] = []
        sums: list[Tensor] = []
        for queries, rows in _pieces(call, keys.shape[2]):
            q = plain(call.q[:, :, queries])
            k, v = (plain_keys, plain_values) if rows is None else (keys, values)
            mask = None if rows is None else image_rows_mask(rows, call.layout, call.spec, q.device)
            pooled_keys = k.shape[2] - call.layout.length
            if call.bias is not None:
                added = call.bias.rows(queries, q.dtype, pooled_keys)
                mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
            if call.spec.overview and rows is not None and mask is not None:
                outside = outside_bias(call, queries).to(q.dtype)
                mask = additive(mask, q.dtype) + F.pad(outside, (mask.shape[-1] - pooled_keys, 0))
            outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale))
            if call.return_lse:
                sums.append(log_sum_exp(q, k, call.scale, mask))
            call.on_chunk()
        if not outs:
            return call.empty_result()
        out = torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]
        return Attended(out, torch.cat(sums, dim=2) if call.return_lse else None)


def _heads_at_once(call: AttentionCall, keys: int) -> int:
    """Number of heads whose scores of one image row fit the memory limit, where attention keeps scores."""
    if call.fused:
        return call.q.shape[1]
    return call.chunk_limit // (SCORE_BYTES * call.q.shape[0] * call.layout.grid[1] * keys)


def _pieces(call: AttentionCall, image_keys: int) -> list[tuple[slice, range | None]]:
    """The queries in the order of q, piece by piece: their positions, and their image rows if they need a window.

    Args:
        image_keys: Number of keys of an image query before the window.
    """
    layout, image, length = call.layout, call.image_queries, call.q.shape[2]
    windowed = not call.spec.is_dense(layout.grid)
    masks = 1 if call.bias is None else call.bias.masks
    # The mask is held as booleans, and as the elements in q's dtype that attention makes of them.
    chunk = MASK_ELEMENTS if call.chunk_bytes is None else call.chunk_bytes // (1 + call.q.element_size())
    elements = max(1, chunk // masks)
    step = max(1, length if call.bias is None else elements // layout.length)
    if not call.fused:
        scores = call.chunk_limit // (SCORE_BYTES * call.q.shape[0] * call.q.shape[1])
        elements = max(1, min(elements, scores))
        step = max(1, min(step, scores // layout.length))
    # Text and reference queries see every token of the sequence; so do image queries if windows cover the grid.
    unwindowed = ((0, image.start), (image.stop, length)) if windowed else ((0, length),)
    pieces: list[tuple[slice, range | None]] = [
        (slice(start, min(start + step, stop)), None)
        for first, stop in unwindowed
        for start in range(first, stop, step)
    ]
    if windowed:
        width, rows = layout.grid[1], call.query_rows
        band = max(1, elements // (width * image_keys))
        for y in range(0, len(rows), band):
            part = rows[y : y + band]
            first = image.start + y * width
            pieces.append((slice(first, first + len(part) * width), part))
    return sorted(pieces, key=lambda piece: piece[0].start)


DENSE = DenseBackend()
