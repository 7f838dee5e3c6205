"""The tiny FLUX's stand-in for a VAE: a fixed linear transform of 8 x 8 pixels to 16 coefficients, and back.

Brightness keeps ten of its 64 cosine coefficients, each of the two colour differences three; the other 176 of 192
are dropped, so ``encode(decode(z)) == z`` to rounding, and ``decode(encode(x))`` is the nearest such picture to x.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
CHANNELS = 16

# Orthonormal rows: brightness, red against green, yellow against blue.
OPPONENT = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, -(2**-0.5), 0.0), (6**-0.5, 6**-0.5, -2 * 6**-0.5))
# (opponent row, vertical frequency, horizontal frequency) of every channel.
KEPT = tuple(
    (row, order - across, across)
    for row, most in ((0, 3), (1, 1), (2, 1))
    for order in range(most + 1)
    for across in range(order + 1)
)
# Mean of the coefficients of images of the world (in -1 to 1), and their divisors. The means of
# brightness and colour vary by 6, 2 and 3 (measured), the rest by 0.05 to 0.5: full whitening would give fine
# detail the weight of the whole layout, none would drown it in noise of deviation 1; this lies between.
CENTRE = (-0.9, *(0.0,) * 12, -0.25, *(0.0,) * 2)
SPREAD = (6.0, *(0.8,) * 2, *(0.4,) * 3, *(0.25,) * 4, 2.1, *(0.45,) * 2, 3.0, *(0.5,) * 2)


def basis(dtype: torch.dtype = torch.float32) -> Tensor:
    """(16, 3, 8, 8), orthonormal."""
    position = (torch.arange(BLOCK, dtype=torch.float64) + 0.5) * math.pi / BLOCK
    waves = torch.stack([torch.cos(position * f) * math.sqrt((1 if f == 0 else 2) / BLOCK) for f in range(BLOCK)])
    opponent = torch.tensor(OPPONENT, dtype=torch.float64)
    return torch.stack([opponent[row, :, None, None] * waves[v][None, :, None] * waves[u] for row, v, u in KEPT]).to(
        dtype
    )


def encode(pictures: Tensor) -> Tensor:
    """Latents of pictures.

    Args:
        pictures: (B, 3, H, W) RGB, 0 to 1; H and W multiples of 8.

    Returns:
        (B, 16, H/8, W/8), zero mean on pictures of the world, deviations 0.2 to 1.

    Raises:
        ValueError: The shape does not fit.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % BLOCK or pictures.shape[3] % BLOCK:
        raise ValueError(
            f"pictures has shape {tuple(pictures.shape)}; expected (batch, 3, height, width) with sides "
            f"that are multiples of {BLOCK}."
        )
    coefficients = F.conv2d(pictures * 2 - 1, basis(pictures.dtype).to(pictures.device), stride=BLOCK)
    return (coefficients - channel_row(CENTRE, pictures)) / channel_row(SPREAD, pictures)


def decode(latents: Tensor) -> Tensor:
    """Pictures of latents, not clamped.

    Args:
        latents: (B, 16, h, w).

    Returns:
        (B, 3, 8h, 8w) RGB; within 0 to 1 except for the error of the dropped frequencies.

    Raises:
        ValueError: The shape does not fit.
    """
    if latents.ndim != 4 or latents.shape[1] != CHANNELS:
        raise ValueError(f"latents has shape {tuple(latents.shape)}; expected (batch, {CHANNELS}, height, width).")
    coefficients = latents * channel_row(SPREAD, latents) + channel_row(CENTRE, latents)
    return F.conv_transpose2d(coefficients, basis(latents.dtype).to(latents.device), stride=BLOCK) / 2 + 0.5


def channel_row(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
