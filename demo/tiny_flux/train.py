"""Trains the tiny FLUX from nothing: ``python -m demo.tiny_flux.train --out out/tiny_flux``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..training import Recipe, Stage, run
from .model import GUIDANCE, new_tiny_flux, velocity
from .weights import save_tiny_flux

# Few different numbers of tokens, so that torch.compile sees few shapes.
SMALL = ((160, 192, 32), (192, 160, 32), (128, 240, 32), (160, 192, 32), (192, 160, 32), (240, 128, 32))
USUAL = ((256, 256, 16), (256, 256, 16), (512, 512, 4))
# A few of the largest, so that dense attention also works at 4096 tokens, the size of the comparison with windows.
LARGE = (*USUAL, (256, 256, 16), (256, 256, 16), (1024, 1024, 1))

# Small images first: they teach the layout at less cost.
STAGES = (
    Stage(2700, SMALL, (1e-3, 1e-3)),
    Stage(900, USUAL, (1e-3, 1e-3), shift=0.6),
    Stage(2000, LARGE, (1e-3, 2e-5), shift=0.4),
)


def own_velocity(model: nn.Module, latents: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The model's velocity with the guidance that it always has."""
    return velocity(model, latents, sigma, context, pooled, torch.full_like(sigma, GUIDANCE))


RECIPE = Recipe("tiny_flux", new_tiny_flux, own_velocity, save_tiny_flux, STAGES)


if __name__ == "__main__":
    run(RECIPE, (__doc__ or "").partition("\n")[0])
