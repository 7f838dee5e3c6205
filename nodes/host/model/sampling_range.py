"""Whether a call lies between two percents of the sampling, as the host's own nodes count them.

Source: ``model_sampling.percent_to_sigma``, compared as ``comfy.controlnet.ControlBase`` does; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_in_range(sampling: Any, sigma: Tensor, start: float, end: float) -> bool:
    """Whether a noise level is in a part of the sampling, both ends included.

    Args:
        sampling: The model's ``model_sampling``.
        sigma: (B,), the same for the whole batch.
        start, end: Shares of the sampling, 0 to 1.
    """
    is_late_enough = start <= 0 or not sigma[0] > sampling.percent_to_sigma(start)
    return is_late_enough and (end >= 1 or not sigma[0] < sampling.percent_to_sigma(end))
