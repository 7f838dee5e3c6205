"""Inputs of tests of the tiny FLUX: latents and prompts, seeded, small and of any length, and the node's widgets."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.frozen import FROZEN

from .sampling import conditioning

CLEAR_WIDGETS = FROZEN["CLEARAttention"]["inputs"][1:]
"""Widgets of CLEARAttention in their frozen order: saved workflows restore them by position."""


def noise(height: int, width: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """A latent of ``height`` x ``width``: (B, 16, H, W)."""
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(text: int = 7, seed: int = 2, **extra: Any) -> list:
    """Conditioning of ``text`` tokens for the tiny FLUX, with more entries if wanted."""
    generator = torch.Generator().manual_seed(seed)
    out = conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out
