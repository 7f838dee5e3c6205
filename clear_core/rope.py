"""Rotary position embedding at high resolution: the NTK factor, and when it is wanted.

Source: section 4.2 of the paper and its high-resolution notebook (``ntk_factor = 10``).
"""

from __future__ import annotations

# Up to here (2 megapixels) FLUX itself is at home; above it the high-resolution recipe applies.
HIRES_TOKENS = 8192
HIRES_NTK_FACTOR = 10.0


def is_hires(image_tokens: int) -> bool:
    """Whether a frame of this many image tokens wants the high-resolution recipe."""
    return image_tokens > HIRES_TOKENS


def ntk_factor(image_tokens: int, wanted: float = 0.0) -> float:
    """The factor on the base of all rotary axes.

    Args:
        image_tokens: N of the whole frame.
        wanted: 0 decides by the frame (1 up to 8192 tokens, 10 above); any other value is taken as it is.
    """
    if wanted:
        return float(wanted)
    return HIRES_NTK_FACTOR if is_hires(image_tokens) else 1.0


def ntk_theta(theta: float, factor: float) -> float:
    """The rotary base under an NTK factor: ``theta * factor`` (FLUX: theta 10000)."""
    return theta * factor
