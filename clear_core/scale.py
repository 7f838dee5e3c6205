"""Attention scale: plain, and proportional to the logarithm of the token count for high resolution.

Source: ``attention_processor.py`` of the reference code; the paper takes it from Jin et al. 2023.
"""

from __future__ import annotations

import math

from .families import FLUX1

# The reference code multiplies the token count by this in its down-sampled variants.
POOLED_TOKEN_FACTOR = 10


def attention_scale(
    head_dim: int, *, proportional: bool = False, tokens: int = 0, pooled: bool = False, base: int = FLUX1.scale_base
) -> float:
    """The factor on the query-key products.

    Args:
        head_dim: Size of one head.
        proportional: False gives ``1/sqrt(head_dim)``; True gives ``sqrt(log_base(n) / head_dim)``.
        tokens: T + N of the whole frame, also if it is sampled in tiles. Neither reference nor pooled tokens are
            counted.
        pooled: Whether the variant has pooled keys; then n is ``10 * tokens``.
        base: Tokens of a sequence of the size the model was trained at (FLUX.1: 4608).
    """
    if not proportional:
        return head_dim**-0.5
    counted = tokens * (POOLED_TOKEN_FACTOR if pooled else 1)
    # At scale 0 the softmax is uniform; a frame of one token would give less.
    return math.sqrt(max(math.log(max(counted, 1), base), 0.0) / head_dim)
