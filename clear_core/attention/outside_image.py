"""Ordinary attention calls: text and reference queries, and attention that also returns its log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import SequenceLayout
from .backends.dense import log_sum_exp
from .bias import AttentionBias, additive
from .budget import default_chunk_bytes, query_rows


def empty_output(q: Tensor) -> Tensor:
    """Uninitialised (B, heads, L, D), laid out token by token so that the model's (B, L, heads * D) is a view."""
    batch, heads, length, head_dim = q.shape
    return q.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def wants_grad(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether autograd will go backwards through this call."""
    return torch.is_grad_enabled() and any(one.requires_grad for one in (q, k, v))


def returns_lse(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention with its log-sum-exp costs no more than attention here.

    The log-sum-exp has no gradient, so not where one is wanted.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not wants_grad(q, k, v)
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    )


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention and the log of its softmax denominators.

    Args:
        q, k, v: (B, heads, tokens, D); the last dimension contiguous.
        mask: bool, True where the key is seen, or numbers in q's dtype that are added to the scores, or None;
            broadcast to (B, heads, queries, keys). By a bool mask every query sees some key.

    Returns:
        (B, heads, queries, D) in q's dtype and (B, heads, queries) float32.
    """
    if not returns_lse(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out, log_sum_exp(q, k, scale, mask)
    numbers = None if mask is None else additive(mask, q.dtype)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=numbers, scale=scale)
    if mask is not None and mask.dtype != torch.bool:
        # The kernel says 0 of a query that sees nothing.
        lse = lse.masked_fill(numbers.amax(dim=-1) == float("-inf"), float("-inf"))
    return out, lse


def attend_outside_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    *,
    layout: SequenceLayout,
    scale: float,
    chunk_bytes: int | None,
    on_chunk: Callable[[], None] | None,
    bias: AttentionBias | None = None,
) -> None:
    """Text and reference queries, which see the whole sequence: writes their rows of ``out`` and ``lse``.

    In a launch together with the windows they would be its long tail.
    """
    image = layout.image_slice
    if layout.length == layout.image:
        return
    budget = default_chunk_bytes(q.device) if chunk_bytes is None else chunk_bytes
    step = query_rows(q.device, q.shape[0] * q.shape[1] * layout.length, budget)
    if bias is not None:
        # The kernel may want a copy besides the one in q's dtype.
        step = max(1, min(step, budget // (2 * q.element_size() * bias.masks * layout.length)))
    for first, stop in ((0, image.start), (image.stop, layout.length)):
        for start in range(first, stop, step):
            rows = slice(start, min(start + step, stop))
            mask = None if bias is None else bias.rows(rows, q.dtype)
            if lse is None:
                out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask, scale=scale)
            else:
                out[:, :, rows], lse[:, :, rows] = attend_with_lse(q[:, :, rows], k, v, scale, mask)
            if on_chunk is not None:
                on_chunk()
