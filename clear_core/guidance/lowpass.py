"""The low frequencies of a latent, in the two forms that the published methods use."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def coarse(latent: Tensor, level: int) -> Tensor:
    """The approximation part of a Haar wavelet transform, at the latent's size (I-Max, arXiv 2410.07536).

    It is a projection: applied twice it changes nothing.

    Args:
        latent: (..., h, w), any floating-point dtype.
        level: 1 or more; a block is 2**level elements wide and high. One that the border cuts is the mean of what is
            there.

    Returns:
        Of each block its mean, in every place of the block; as ``latent`` in shape and dtype.

    Raises:
        ValueError: ``level`` is below 1.
    """
    if level < 1:
        raise ValueError(f"level is {level}; expected 1 or more.")
    height, width = latent.shape[-2:]
    side = 2**level
    exact = latent if latent.dtype == torch.float64 else latent.float()
    # Without padding, a block at the border is divided by what it holds.
    means = F.avg_pool2d(exact.reshape(1, -1, height, width), side, ceil_mode=True)
    spread = means.repeat_interleave(side, 2)[:, :, :height].repeat_interleave(side, 3)[..., :width]
    return spread.reshape(latent.shape).to(latent.dtype)


def butterworth(latent: Tensor, order: int = 4, cutoff: float = 0.2) -> Tensor:
    """A Butterworth low-pass filter by Fourier transform (HiFlow, arXiv 2504.06232, ``run_hiflow.py``).

    On sides of an odd length the published filter lies beside the middle and darkens the whole; this one does not.

    Args:
        latent: (..., h, w).
        order: The larger, the sharper.
        cutoff: In halves of the sampling rate, above 0: where half is let through.

    Returns:
        As ``latent`` in shape and dtype; computed in float32 at least.
    """
    exact = latent if latent.dtype == torch.float64 else latent.float()
    height, width = latent.shape[-2:]
    passed = _passed(height, width, order, cutoff, exact.dtype, latent.device)
    return torch.fft.ifft2(torch.fft.fft2(exact) * passed).real.to(latent.dtype)


@lru_cache(maxsize=8)
def _passed(height: int, width: int, order: int, cutoff: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(h, w), the share of each frequency that is let through, in the transform's own order."""
    rows, columns = (2 * torch.fft.fftfreq(side, dtype=dtype, device=device) for side in (height, width))
    distance = rows[:, None].square() + columns.square()
    return 1 / (1 + (distance / cutoff**2) ** order)
