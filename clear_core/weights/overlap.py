"""How much of a delta some weights carry already, from one number in the delta's header.

The overlap of weights W with a delta D is the sum of W * D over that of D * D. D itself adds exactly 1 to it, a
fine-tune that is unrelated to D nearly 0. A delta's header states the overlap of its base, so that the rest is D's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLES = 4
"""Tensors that are compared; each has 9 million elements in FLUX.1."""

ROWS = 128
"""Rows of a tensor that are compared at a time, which bounds the memory."""

CARRIED = 0.4
"""Share from which on a delta counts as carried; what is unrelated to it comes to a few hundredths."""


def compared_names(names: Iterable[str]) -> list[str]:
    """A few of a file's weights, evenly spread: if there are any, those that no model stacks with others."""
    weights = sorted(name for name in names if name.endswith(".weight"))
    alone = [name for name in weights if name.endswith(".to_out.0.weight")] or weights
    return alone[:: max(1, len(alone) // SAMPLES)][:SAMPLES]


def overlap(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """The overlap of weights with a delta, from pairs of their parts of equal shapes; None if it is no number."""
    along = size = 0.0
    for weight, change in pairs:
        weight, change = weight.flatten().float(), change.flatten().float()
        along += torch.dot(weight, change).item()
        size += torch.dot(change, change).item()
    found = along / size if size else math.nan
    return found if math.isfinite(found) else None
