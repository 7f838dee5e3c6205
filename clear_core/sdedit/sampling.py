"""Euler sampling of a flow-matching model from a given noise level down."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from .schedule import FLUX_SHIFT, sdedit_sigmas

Denoiser = Callable[[Tensor, float], Tensor]
"""(latent (B, C, H, W), sigma) to the velocity ``noise - image``, same shape."""


def noised(latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The point of the flow from image to noise at ``sigma``: ``sigma * noise + (1 - sigma) * latent``."""
    if latent.shape != noise.shape:
        raise ValueError(f"the noise has shape {tuple(noise.shape)}; expected the latent's, {tuple(latent.shape)}.")
    return sigma * noise + (1 - sigma) * latent


def euler(
    denoiser: Denoiser, latent: Tensor, sigmas: Tensor, on_step: Callable[[int, int], None] | None = None
) -> Tensor:
    """Integrates the flow from ``sigmas[0]`` to ``sigmas[-1]``.

    Args:
        denoiser: The model.
        latent: (B, C, H, W) at noise level ``sigmas[0]``.
        sigmas: (steps + 1,) falling.
        on_step: Called after every step as ``on_step(done, steps)``; if it raises, the loop ends.

    Returns:
        (B, C, H, W) in the dtype of ``latent``; steps are added in float32.
    """
    levels = sigmas.tolist()
    for done, (sigma, following) in enumerate(pairwise(levels), start=1):
        velocity = denoiser(latent, sigma)
        latent = (latent.float() + (following - sigma) * velocity.float()).to(latent.dtype)
        if on_step is not None:
            on_step(done, len(levels) - 1)
    return latent


def sdedit(
    denoiser: Denoiser,
    latent: Tensor,
    noise: Tensor,
    *,
    steps: int = 20,
    strength: float = 0.7,
    shift: float = FLUX_SHIFT,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Redraws an enlarged image: adds noise up to ``strength``, then denoises it.

    Args:
        denoiser: The model.
        latent: (B, C, H, W) of the enlarged image, in the scale of the model.
        noise: Standard normal, same shape.
        steps, strength, shift: As in :func:`sdedit_sigmas`.
        on_step: As in :func:`euler`.

    Returns:
        (B, C, H, W).
    """
    sigmas = sdedit_sigmas(steps, strength, shift)
    return euler(denoiser, noised(latent, noise, float(sigmas[0])), sigmas, on_step)
