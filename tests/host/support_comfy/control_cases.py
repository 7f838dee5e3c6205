"""Inputs of the ControlNet tests: latents, prompts, a plain VAE, and the dense oracle for model and ControlNet."""

from __future__ import annotations

from typing import Any

import torch

from .oracle import window_mask, with_oracle_attention
from .sampling import conditioning

TEXT = 7
SIGMA = 0.6
RADIUS = 8


class PlainVAE:
    """Means of 8 x 8 pixels in 16 mixtures of the colours."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        mix = torch.linspace(-1, 1, 3 * 16).reshape(3, 16)
        return torch.nn.functional.avg_pool2d((pixels[..., :3] @ mix).movedim(-1, 1), 8)


def noise(height: int, width: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 2, text: int = TEXT) -> list:
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))


def masks_for(grid: tuple[int, int], radius: int) -> dict[int, torch.Tensor]:
    """Without and with the token that a Union ControlNet puts before the text."""
    return {text + grid[0] * grid[1]: window_mask(text, grid, 0, radius) for text in (TEXT, TEXT + 1)}


def oracle(model: Any, grid: tuple[int, int], radius: int, scale: float | None = None) -> Any:
    return with_oracle_attention(model, window_mask(TEXT, grid, 0, radius), scale)


def run(
    model: Any,
    latent: torch.Tensor,
    positive: list,
    negative: list,
    cfg: float = 1.0,
    steps: int = 2,
    callback: Any = None,
) -> torch.Tensor:
    """A whole sampling run, as KSampler does it."""
    import comfy.sample

    # The host's prepare_noise seeds the generator that all threads share.
    start = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            start,
            steps,
            cfg,
            "euler",
            "simple",
            positive,
            negative,
            latent,
            denoise=0.7,
            disable_pbar=True,
            callback=callback,
        )
