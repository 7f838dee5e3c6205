"""Dense attention that also returns its log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias import additive
from .tiling.masks import ALIGNMENT as MASK_ALIGNMENT

# Elements of one block of scores: 256 MiB in float32.
SCORE_ELEMENTS = 2**26

# Largest error of a card's kernel in a small case with values of about 1: more than any dtype's rounding.
CARD_TOLERANCE = 0.03


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
    """Whether attention with its log-sum-exp costs no more than attention alone.

    So it is in the CPU's fused kernel and in a card's memory-efficient one. That log-sum-exp has no gradient, so the
    answer is no if one is wanted. The CPU's kernel dies of a call without queries.
    """
    return not needs_grad and q.shape[2] > 0 and _kernel(q.device, q.dtype, q.shape[-1]) is not None


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
    kernel = _kernel(q.device, q.dtype, q.shape[-1]) if lse_is_free(q, needs_grad) else None
    if kernel is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out, log_sum_exp(q, k, scale, mask)
    added = None if mask is None else additive(mask, q.dtype)
    out, lse = kernel(q, k, v, added, scale)
    if added is not None and mask is not None and mask.dtype != torch.bool and not sees_some:
        # For rows that are masked entirely the kernels return other numbers than -inf.
        lse = lse.masked_fill(added.amax(dim=-1) == float("-inf"), float("-inf"))
    return out, lse


# Of (q, k, v, what is added to the scores or None, scale): output and log-sum-exp.
_Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], tuple[Tensor, Tensor]]


@lru_cache(maxsize=64)
def _kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> _Kernel | None:
    """The kernel that gives the log-sum-exp as well; None if there is none."""
    if device.type == "cpu":
        there = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        return _by_cpu if there and dtype in (torch.float32, torch.bfloat16, torch.float16) else None
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if not hasattr(torch.ops.aten, "_scaled_dot_product_efficient_attention"):
        return None
    return _by_card if _card_is_right(device, dtype, head_dim) else None


def _by_cpu(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    # The kernel ignores the last stride.
    q, k, v = (one if one.stride(-1) == 1 else one.contiguous() for one in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=added, scale=scale)


def _by_card(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    if added is not None:
        keys = added.shape[-1]
        if added.stride(-2) * added.element_size() % MASK_ALIGNMENT:
            padding = -keys % (MASK_ALIGNMENT // added.element_size())
            added = F.pad(added, (0, padding))[..., :keys]
        added = added.expand(q.shape[0], q.shape[1], q.shape[2], keys)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, added, True, scale=scale)
    # The kernel fills the queries up.
    return out, lse[..., : q.shape[2]]


def _card_is_right(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a card's kernel gives what it should in a small case with an odd number of queries and a mask."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 37, head_dim, generator=generator).to(device, dtype).unbind()
    seen = torch.rand(37, 37, generator=generator) < 0.5
    mask = additive((seen | torch.eye(37, dtype=torch.bool)).to(device), dtype)
    parameters = torch.backends.cuda.SDPAParams(q, k, v, mask.expand(2, 2, 37, 37), 0.0, False, False)
    if not torch.backends.cuda.can_use_efficient_attention(parameters, False):
        return False
    scale = head_dim**-0.5
    try:
        out, lse = _by_card(q, k, v, mask, scale)
    except RuntimeError:
        return False
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float(), scale=scale)
    errors = [(out.float() - expected).abs().max(), (lse - log_sum_exp(q, k, scale, mask)).abs().max()]
    return all(float(error) < CARD_TOLERANCE for error in errors)
