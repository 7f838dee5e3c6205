"""Queries that see all of some keys, in chunks, with their log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..attention.budget import default_chunk_bytes, queries_at_once
from ..attention.fused import is_fused, plain
from ..attention.lse import attend_with_lse


def attended_chunks(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Attention without windows, some queries at a time.

    Args:
        q: (B, heads, queries, D); may be empty.
        k, v: (B, heads, keys, D); may be empty.
        scale: Factor on the query-key products.

    Yields:
        Positions of queries, their result (B, heads, chunk, D) in q's dtype, and their log-sum-exp (B, heads, chunk)
        float32; nothing if there are no queries or no keys.
    """
    # A CPU's kernel dies of a call without queries.
    if not q.shape[2] or not k.shape[2]:
        return
    batch, heads, queries, head_dim = q.shape
    limit = default_chunk_bytes(q.device, q.numel() * q.element_size())
    fused = is_fused(q.device, q.dtype, head_dim, False)
    # Who merges the chunk holds both parts and the whole in float32.
    step = min(
        max(1, limit // (12 * batch * heads * head_dim)),
        queries_at_once(q.device, batch * heads * k.shape[2], limit, fused),
    )
    k, v = plain(k), plain(v)
    for start in range(0, queries, step):
        rows = slice(start, start + step)
        yield rows, *attend_with_lse(plain(q[:, :, rows]), k, v, scale=scale, needs_grad=False)


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, scale: float, on_chunk: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """All chunks of :func:`attended_chunks`, with the same arguments.

    Args:
        on_chunk: Called after each chunk.

    Returns:
        (B, heads, queries, D) in q's dtype, and (B, heads, queries) float32. Without keys they are 0 and -inf.
    """
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full(q.shape[:3], float("-inf"), dtype=torch.float32)
    for rows, *part in attended_chunks(q, k, v, scale):
        out[:, :, rows], lse[:, :, rows] = part
        on_chunk()
    return out, lse
