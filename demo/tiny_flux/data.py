"""Training batches of the world, each a pure function of (seed, step), so none is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..world import Scene, draw_scene, random_scene
from .caption import encode_captions
from .codec import encode

# Seed of the scenes for evaluation, different from every training step's.
HELD_OUT = 2**40
# Share of empty captions, so that the model also learns images without a caption.
EMPTY = 0.1


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        latents: (B, 16, h, w) of the images.
        noise: (B, 16, h, w) standard normal.
        sigma: (B,) noise levels, 0 to 1.
        context, pooled: Outputs of the caption encoder.
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    context: Tensor
    pooled: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def noisy(self) -> Tensor:
        sigma = self.sigma[:, None, None, None]
        return sigma * self.noise + (1 - sigma) * self.latents


def draw_latents(scenes: Sequence[Scene], size: tuple[int, int]) -> Tensor:
    """(B, 16, h, w) latents of scenes drawn at ``size`` = (height, width) pixels, multiples of 16."""
    return torch.cat([encode(torch.from_numpy(draw_scene(scene, *size)).permute(2, 0, 1)[None]) for scene in scenes])


def training_batch(seed: int, step: int, count: int, size: tuple[int, int], large: float = 0.0) -> Batch:
    """The batch of one step.

    Args:
        count: Number of images.
        size: (height, width) in pixels.
        large: Shift of the noise levels towards noise, in logits: larger images stay recognisable under more noise.
    """
    rng = np.random.default_rng((seed, step))
    scenes = [random_scene(rng) for _ in range(count)]
    captions = ["" if rng.random() < EMPTY else scene.caption for scene in scenes]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    latents = draw_latents(scenes, size)
    sigma = torch.sigmoid(torch.randn(count, generator=generator) * 1.2 + 0.4 + large)
    return Batch(latents, torch.randn(latents.shape, generator=generator), sigma, *encode_captions(captions))


def held_out_scenes(count: int, first: int = 0) -> list[Scene]:
    """Scenes that no training step uses, always the same."""
    return [random_scene(np.random.default_rng((HELD_OUT, first + index))) for index in range(count)]
