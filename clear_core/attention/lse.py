"""Dense attention that also returns its log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias import additive

# Elements of one block of scores: 256 MiB in float32.
SCORE_ELEMENTS = 2**26


def log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Log of the softmax denominators, (B, heads, queries) float32."""
    step = max(1, SCORE_ELEMENTS // (q.shape[0] * q.shape[1] * k.shape[2]))
    keys = k.float().transpose(-1, -2)
    sums: list[Tensor] = []
    for start in range(0, q.shape[2], step):
        scores = (q[:, :, start : start + step].float() @ keys) * scale
        if mask is not None:
            part = mask[..., start : start + step, :]
            scores = scores.masked_fill(~part, float("-inf")) if mask.dtype == torch.bool else scores + part.float()
        sums.append(scores.logsumexp(dim=-1))
    return torch.cat(sums, dim=2)


def lse_is_free(q: Tensor, needs_grad: bool) -> bool:
    """Whether attention with its log-sum-exp costs no more than attention alone, as in the CPU's fused kernel.

    That log-sum-exp has no gradient, so the answer is no if one is wanted. The kernel dies of a call without queries.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not needs_grad
        and q.shape[2] > 0
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    )


def attend_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    needs_grad: bool,
    mask: Tensor | None = None,
    sees_some: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention and the log of its softmax denominators.

    Args:
        q, k, v: (B, heads, tokens, D).
        needs_grad: Whether gradients are wanted.
        mask: bool, True if the key is seen, or elements in q's dtype that are added to the scores, or None;
            broadcast to (B, heads, queries, keys). By a bool mask every query sees some key.
        sees_some: Whether every query sees some key by a mask of added elements too.

    Returns:
        (B, heads, queries, D) in q's dtype and (B, heads, queries) float32.
    """
    if not lse_is_free(q, needs_grad):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out, log_sum_exp(q, k, scale, mask)
    # The kernel ignores the last stride.
    q, k, v = (one if one.stride(-1) == 1 else one.contiguous() for one in (q, k, v))
    added = None if mask is None else additive(mask, q.dtype)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=added, scale=scale)
    if added is not None and mask is not None and mask.dtype != torch.bool and not sees_some:
        # The kernel returns 0 for rows that are masked entirely; the correct value is -inf.
        lse = lse.masked_fill(added.amax(dim=-1) == float("-inf"), float("-inf"))
    return out, lse
