"""I-Max's low-resolution guidance as a correction of the denoised prediction (arXiv 2410.07536).

With x = sigma * noise + (1 - sigma) * x0 and a velocity v = (x - x0) / sigma, the published change of the velocity is
one of x0 alone: low(.) is linear and x cancels.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from .lowpass import coarse

Schedule = Literal["decay", "shift", "constant"]

SCHEDULES: tuple[Schedule, ...] = ("decay", "shift", "constant")
"""``decay``: the low frequencies, less and less (the paper). ``shift``: all frequencies first, the low ones later (the
published code's default). ``constant``: the low frequencies, always."""


def guided(denoised: Tensor, guide: Tensor, done: float, schedule: Schedule, level: int, strength: float) -> Tensor:
    """The prediction, moved towards a guide.

    Args:
        denoised: (..., h, w), the prediction x0 after guidance by the prompt.
        guide: The same shape: the enlarged low-resolution result, as the model sees latents.
        done: Share of the run that is done, 0 to 1.
        schedule: One of :data:`SCHEDULES`.
        level: Of the wavelet transform, 1 or more.
        strength: Factor on the whole correction; 0 returns ``denoised`` itself.

    Raises:
        ValueError: The shapes differ, or a value does not fit.
    """
    if strength == 0:
        return denoised
    if guide.shape[-2:] != denoised.shape[-2:]:
        sizes = " and ".join(f"{one.shape[-2]} x {one.shape[-1]}" for one in (denoised, guide))
        raise ValueError(f"the picture and its guide are {sizes} latents high and wide; expected one size.")
    low = coarse(guide - denoised, level)
    if schedule == "constant":
        return denoised + strength * low
    fading = 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "decay":
        return denoised + strength * fading * low
    if schedule == "shift":
        return denoised + strength * (fading * (guide - denoised) + (1 - fading) * low)
    raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}.")
