"""Keeps the colours of the image before the pass: its coarse wavelet levels replace the new image's.

Source: the "wavelet" colour correction of StableSR (arXiv 2305.07015), an à-trous transform.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
"""Detail finer than about 2**5 px is kept from the new image."""

COLOR_FIXES = ("none", "wavelet")


def low_frequencies(images: Tensor, levels: int = LEVELS) -> Tensor:
    """(B, C, H, W) float images after ``levels`` à-trous smoothing levels, with replicated borders."""
    kernel = images.new_tensor([0.25, 0.5, 0.25])
    channels = images.shape[1]
    for level in range(levels):
        step = 2**level
        for dim, pad in ((2, (0, 0, step, step)), (3, (step, step, 0, 0))):
            shape = [1, 1, 1, 1]
            shape[dim] = 3
            dilation = [1, 1]
            dilation[dim - 2] = step
            padded = F.pad(images, pad, mode="replicate")
            images = F.conv2d(
                padded, kernel.view(shape).expand(channels, 1, -1, -1), dilation=dilation, groups=channels
            )
    return images


def wavelet_color_fix(images: Tensor, reference: Tensor) -> Tensor:
    """``images`` with the coarse colours of ``reference``; both and the result are (B, H, W, C) in 0 to 1.

    Raises:
        ValueError: The shapes differ.
    """
    if images.shape != reference.shape:
        raise ValueError(f"the reference has shape {tuple(reference.shape)}; expected {tuple(images.shape)}.")
    fixed = torch.empty_like(images)
    for item in range(images.shape[0]):  # One at a time: an 8K image is 0.8 GB in float32.
        drift = (reference[item] - images[item]).float().movedim(-1, 0)[None]
        fixed[item] = (images[item] + low_frequencies(drift)[0].movedim(0, -1)).clamp(0, 1)
    return fixed
