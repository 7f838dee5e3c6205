"""All measurements in the order in which they are made."""

from __future__ import annotations

from . import chunks, exactness, first_use, kernels, layers, peaks, steps, triton_shapes
from .bench import Measurement
from .scale import Scale


def plan(scale: Scale) -> list[Measurement]:
    """What every decision rests on first, section by section; then what rounds the picture off."""
    listed = [
        *exactness.measurements(scale),
        *layers.measurements(scale),
        *layers.pair_measurements(scale),
        *triton_shapes.measurements(scale),
        *chunks.measurements(scale),
        *first_use.measurements(scale),
        *kernels.measurements(scale),
        *steps.measurements(scale),
        *peaks.measurements(scale),
    ]
    return sorted(listed, key=lambda one: one.later)
