"""How far a run has come, from the sigma of a call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def progress(sigma: float, sigmas: Sequence[float]) -> float:
    """Place of a sigma among a run's, 0 at the first and 1 at the last.

    Samplers of higher order ask between two steps; such a sigma lies between their places, in proportion.

    Args:
        sigma: Of a call.
        sigmas: Of the run, falling, one more than it has steps.

    Raises:
        ValueError: The run has no step.
    """
    steps = len(sigmas) - 1
    if steps < 1:
        raise ValueError(f"a run has {len(sigmas)} sigmas; expected two or more.")
    rising = [-one for one in sigmas]
    place = bisect_left(rising, -sigma)
    if place == 0:
        return 0.0
    if place > steps:
        return 1.0
    above, below = sigmas[place - 1], sigmas[place]
    return (place - 1 + (above - sigma) / (above - below)) / steps
