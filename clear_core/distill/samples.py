"""Training samples in a folder: latents and text embeddings, one safetensors file each; and their order in training."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..weights.filename import is_hidden
from .sample_checks import PARTS, check_model_widths, check_parts, check_same_widths, read_shapes


@dataclass(frozen=True)
class Batch:
    """Samples of one shape, ready for a step.

    Attributes:
        latents: (B, C, H, W) in the scale of the model; H and W even.
        prompt_embeds: (B, T, text width).
        pooled: (B, pooled width).
        noise: (B, C, H, W), standard normal.
        sigma: (B,), noise levels, above 0 to 1.
    """

    latents: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    noise: Tensor
    sigma: Tensor

    @property
    def noisy(self) -> Tensor:
        """(B, C, H, W) ``sigma * noise + (1 - sigma) * latents``."""
        sigma = self.sigma[:, None, None, None]
        return sigma * self.noise + (1 - sigma) * self.latents

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def write_sample(folder: Path, index: int, latents: Tensor, prompt_embeds: Tensor, pooled: Tensor) -> Path:
    """Adds one sample; the file is whole or absent.

    Args:
        index: Index in the folder, 0 and up.
        latents: (C, H, W), prompt_embeds: (T, text width), pooled: (pooled width,).

    Raises:
        ValueError: A part has another rank or type, or values that are not finite.
    """
    path = sample_path(folder, index)
    tensors = dict(zip(PARTS, (latents, prompt_embeds, pooled), strict=True))
    try:
        check_parts(tensors)
    except ValueError as error:
        raise ValueError(f"{path.name} was not written: {error}.") from None
    part = path.with_suffix(".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
    os.replace(part, path)
    return path


def sample_path(folder: Path, index: int) -> Path:
    """Path of one sample."""
    return folder / f"{index:07d}.safetensors"


class SampleFolder:
    """The samples of a folder, by index in the order of their names. Opening it reads every file once.

    Attributes:
        shapes: Shapes of each sample's parts; only samples of equal shapes can share a batch.

    Raises:
        ValueError: The folder holds no samples, a file is not one or has values that are not finite, or they are for
            different models.
    """

    def __init__(self, folder: Path, first: int = 0, end: int | None = None) -> None:
        found = sorted(path for path in folder.glob("*.safetensors") if not is_hidden(path.name))
        self.paths = found[first:end]
        if found and not self.paths:
            raise ValueError(
                f"{folder} holds {len(found)} samples, and all of them are held out; make more, or set held_out to "
                f"less than {len(found)}."
            )
        if not self.paths:
            raise ValueError(
                f"{folder} holds no samples; make some with `python -m clear_core.distill images` or `generate`."
            )
        self.shapes = [read_shapes(path) for path in self.paths]
        check_same_widths(self.paths, self.shapes)

    def check_fits(self, config: Mapping[str, Any]) -> None:
        """Refuse a model that the samples were not made for.

        Args:
            config: Of a diffusers FLUX.1 transformer.

        Raises:
            ValueError: A width is not the model's.
        """
        check_model_widths(self.paths[0], self.shapes[0], config)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The stacked float32 parts of some samples of equal shapes."""
        loaded: list[list[Tensor]] = []
        for index in indices:
            with safe_open(self.paths[index], "pt") as file:
                loaded.append([file.get_tensor(part).float() for part in PARTS])
        return tuple(torch.stack(parts) for parts in zip(*loaded, strict=True))

    def batch(self, indices: Sequence[int], positions: Sequence[int], seed: int, step: int) -> Batch:
        """Some samples with noise that depends on (seed, step, position in the global batch) alone."""
        latents, prompt_embeds, pooled = self.load(indices)
        drawn = [noise_at(latents.shape[1:], seed, step, position) for position in positions]
        noise = torch.stack([noise for noise, _ in drawn])
        return Batch(latents, prompt_embeds, pooled, noise, torch.stack([sigma for _, sigma in drawn]))


def noise_at(shape: Sequence[int], seed: int, step: int, position: int) -> tuple[Tensor, Tensor]:
    """Noise and noise level of one position in a global batch, independent of the process that computes it.

    Levels are uniform, as in the reference training.
    """
    digest = hashlib.blake2b(f"{seed} {step} {position}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    sigma = 1 - torch.rand((), generator=generator)
    return torch.randn(tuple(shape), generator=generator), sigma


class Order:
    """The samples in the global batch of each step: a pure function of the seed and the step.

    Args:
        shapes: Shapes of every sample; a batch holds samples of equal shapes.
        size: Samples in a global batch. A shape with fewer samples left repeats some.
        seed: Seed of the shuffling.
    """

    def __init__(self, shapes: Sequence[object], size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.buckets: dict[object, list[int]] = defaultdict(list)
        for index, shape in enumerate(shapes):
            self.buckets[shape].append(index)
        self.per_epoch = sum(-(-len(bucket) // size) for bucket in self.buckets.values())
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self.seed} {epoch}")
        batches: list[list[int]] = []
        for bucket in self.buckets.values():
            indices = chance.sample(bucket, len(bucket))
            for start in range(0, len(indices), self.size):
                batches.append([indices[(start + i) % len(indices)] for i in range(self.size)])
        chance.shuffle(batches)
        return batches

    def __getitem__(self, step: int) -> list[int]:
        """Sample indices of the global batch of a step."""
        return self.epoch(step // self.per_epoch)[step % self.per_epoch]
