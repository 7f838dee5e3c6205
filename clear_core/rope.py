"""Rotary position embedding at high resolution: the NTK factor.

Source: section 4.2 of the paper and its high-resolution notebook (``ntk_factor = 10``).
"""

from __future__ import annotations

from .families import FLUX1, Family


def ntk_factor(image_tokens: int, wanted: float = 0.0, family: Family = FLUX1) -> float:
    """The factor on the base of all rotary axes.

    Args:
        image_tokens: N of the whole frame.
        wanted: 0 decides by the frame (FLUX.1: 1 up to 8192 image tokens, 10 above); any other value is taken as is.
        family: Whose recipe it is.
    """
    if wanted:
        return float(wanted)
    return family.hires_ntk if family.is_hires(image_tokens) else 1.0


def ntk_theta(theta: float, factor: float) -> float:
    """The rotary base under an NTK factor: ``theta * factor`` (FLUX: theta 10000)."""
    return theta * factor
