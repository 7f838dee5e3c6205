"""Colours held to those of the picture before the pass: its coarse wavelet levels replace the new picture's.

Source: the "wavelet" colour correction of StableSR (arXiv 2305.07015), an à-trous transform.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
"""Detail finer than about 2**5 px is the new picture's."""

COLOR_FIXES = ("none", "wavelet")


def low_frequencies(pictures: Tensor, levels: int = LEVELS) -> Tensor:
    """What is left of (B, C, H, W) float pictures after ``levels`` à-trous levels, borders continued."""
    kernel = pictures.new_tensor([0.25, 0.5, 0.25])
    channels = pictures.shape[1]
    for level in range(levels):
        step = 2**level
        for dim, pad in ((2, (0, 0, step, step)), (3, (step, step, 0, 0))):
            shape = [1, 1, 1, 1]
            shape[dim] = 3
            dilation = [1, 1]
            dilation[dim - 2] = step
            padded = F.pad(pictures, pad, mode="replicate")
            pictures = F.conv2d(
                padded, kernel.view(shape).expand(channels, 1, -1, -1), dilation=dilation, groups=channels
            )
    return pictures


def wavelet_color_fix(pictures: Tensor, reference: Tensor) -> Tensor:
    """``pictures`` with the coarse colours of ``reference``; both (B, H, W, C) in 0 to 1, so is the answer.

    Raises:
        ValueError: The shapes differ.
    """
    if pictures.shape != reference.shape:
        raise ValueError(f"the reference has shape {tuple(reference.shape)}; expected {tuple(pictures.shape)}.")
    fixed = torch.empty_like(pictures)
    for item in range(pictures.shape[0]):  # One at a time: an 8K picture is 0.8 GB in float32.
        drift = (reference[item] - pictures[item]).float().movedim(-1, 0)[None]
        fixed[item] = (pictures[item] + low_frequencies(drift)[0].movedim(0, -1)).clamp(0, 1)
    return fixed
