"""Noise levels of an SDEdit pass.

Source: the high-resolution notebook of the reference code; FLUX.1-dev's static shift is 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..number_checks import check_number
from ..wording import quoted

FLUX_SHIFT = 3.0
"""Static shift of FLUX.1-dev's scheduler."""


def static_shift(sigmas: Tensor, shift: float) -> Tensor:
    """``s * x / (1 + (s - 1) * x)``: moves steps to higher noise if ``shift`` is above 1; 0 and 1 stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sdedit_sigmas(steps: int, strength: float, shift: float = FLUX_SHIFT) -> Tensor:
    """The noise levels of an image-to-image pass.

    Args:
        steps: Steps n of the whole schedule, 1 or more; ``n - int(n - n * strength)`` of them are run.
        strength: Share of the schedule, above 0 and up to 1 (everything is redrawn); the published recipe uses 0.7
            of 20 steps.
        shift: Static shift, above 0; 1 leaves the levels evenly spaced.

    Returns:
        (steps run + 1,) float32, falling, the last one 0.
    """
    if not is_count(steps):
        raise ValueError(f"steps is {quoted(steps)}; expected an integer of at least 1.")
    check_number("strength", strength, 0, 1, above=True)
    check_number("shift", shift, 0, above=True)
    levels = static_shift(torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64), shift)
    skipped = int(steps - steps * strength)
    return torch.cat([levels[skipped:], levels.new_zeros(1)]).float()


def is_count(value: object) -> bool:
    """Whether a value is an integer of at least 1; callers outside may pass anything."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
