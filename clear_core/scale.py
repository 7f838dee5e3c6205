"""Attention scale: plain, and proportional to the logarithm of the token count for high resolution.

Source: ``attention_processor.py`` of the reference code; the paper takes it from Jin et al. 2023.
"""

from __future__ import annotations

import math

# FLUX was trained at 1024 x 1024: 64 * 64 image tokens and 512 text tokens.
TRAINED_TOKENS = 64 * 64 + 512

# The reference code multiplies the token count by this in its down-sampled variants.
POOLED_TOKEN_FACTOR = 10


def attention_scale(head_dim: int, *, proportional: bool = False, tokens: int = 0, pooled: bool = False) -> float:
    """The number that query-key products are multiplied with.

    Args:
        head_dim: Size of one head.
        proportional: False gives ``1/sqrt(head_dim)``; True gives ``sqrt(log_4608(n) / head_dim)``.
        tokens: T + N of the whole frame (also when it is sampled in tiles). Neither reference nor pooled
            tokens are counted.
        pooled: Whether the variant has pooled keys; then n is ``10 * tokens``.
    """
    if not proportional:
        return head_dim**-0.5
    counted = tokens * (POOLED_TOKEN_FACTOR if pooled else 1)
    # A frame of one token would give 0 or less: no scale below the uniform softmax makes sense.
    return math.sqrt(max(math.log(max(counted, 1), TRAINED_TOKENS), 0.0) / head_dim)
