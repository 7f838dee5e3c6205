"""Joining two attentions of the same queries over two sets of keys into the attention over both."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Exact, in float32: each part weighs as much as its softmax denominator.

    Args:
        out_a, out_b: (B, heads, queries, D) of the parts.
        lse_a, lse_b: (B, heads, queries) float32, log of the parts' denominators; -inf where a part has no keys.

    Returns:
        Output in ``out_a``'s dtype and log-sum-exp of the whole.
    """
    share_of_b = torch.sigmoid(lse_b - lse_a)[..., None]
    out = torch.lerp(out_a.float(), out_b.float(), share_of_b).to(out_a.dtype)
    return out, torch.logaddexp(lse_a, lse_b)
