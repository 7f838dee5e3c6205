"""Training samples in a folder: latents and text embeddings, one safetensors file each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .disk import no_half_file
from .folder_record import Value, fingerprint_of_samples
from .order import Order
from .sample_checks import Shapes, check_model_widths, check_parts, check_same_widths, read_shapes
from .sample_files import sample_path, sample_paths

__all__ = ["Batch", "BatchShape", "Order", "SampleFolder", "noise_at", "sample_path", "write_sample"]


@dataclass(frozen=True)
class Batch:
    """Samples of one shape, ready for a step.

    Attributes:
        latents: (B, C, H, W) in the scale of the model; H and W even.
        text: The samples' other parts by name: prompt_embeds (B, T, text width), zeros after a shorter text's end;
            where the model has them pooled (B, pooled width), negative_embeds (B, Tn, text width), negative_pooled (B,
            pooled width).
        noise: (B, C, H, W), standard normal.
        sigma: (B,), noise levels, above 0 to 1.
        text_mask: (B, T), False after a shorter text's end; None if all texts are equally long.
    """

    latents: Tensor
    text: dict[str, Tensor]
    noise: Tensor
    sigma: Tensor
    text_mask: Tensor | None = None

    @property
    def prompt_embeds(self) -> Tensor:
        """(B, T, text width)."""
        return self.text["prompt_embeds"]

    @property
    def pooled(self) -> Any:
        """(B, pooled width); None for models without it."""
        return self.text.get("pooled")

    @property
    def noisy(self) -> Tensor:
        """(B, C, H, W) ``sigma * noise + (1 - sigma) * latents``."""
        sigma = self.sigma[:, None, None, None]
        return sigma * self.noise + (1 - sigma) * self.latents

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: tensor.to(device) for name, tensor in value.items()}
            return None if value is None else value.to(device)

        return Batch(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class BatchShape:
    """What must be equal in the samples of a batch: the shapes of all parts, except for the number of text tokens where
    the model is told it."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: Shapes, masks: bool = True) -> BatchShape:
        """Of a sample.

        Args:
            masks: Whether the model is told where a shorter text ends; else the number of text tokens counts too.
        """
        free = ("prompt_embeds",) if masks else ()
        return cls(tuple((name, shape[1:] if name in free else shape) for name, shape in shapes.items()))

    def __str__(self) -> str:
        # Widths are the same in a whole folder, so only these tell two shapes apart.
        sides = " x ".join(map(str, dict(self.parts)["latents"]))
        negative, text = (dict(self.parts).get(name) for name in ("negative_embeds", "prompt_embeds"))
        counted = f" with {text[0]} text tokens" if text and len(text) > 1 else ""
        return f"latents {sides}{counted}" + (f" with {negative[0]} negative tokens" if negative else "")


def write_sample(
    folder: Path, index: int, latents: Tensor, prompt_embeds: Tensor, pooled: Tensor | None = None, **more: Tensor
) -> Path:
    """Adds one sample; the file is whole or absent.

    Args:
        index: Index in the folder, 0 and up.
        latents: (C, H, W), prompt_embeds: (T, text width), pooled: (pooled width,).
        more: Other parts by name: negative_embeds (Tn, text width), negative_pooled (pooled width,).

    Raises:
        ValueError: A part has another rank or type, or values that are not finite.
        DiskFullError: The disk is full.
    """
    path = sample_path(folder, index)
    content = sample_bytes(path, {"latents": latents, "prompt_embeds": prompt_embeds, "pooled": pooled, **more})
    with no_half_file(path) as part:
        part.write_bytes(content)
    return path


def sample_bytes(path: Path, parts: Mapping[str, Tensor | None]) -> bytes:
    """The content of a sample's file, after a check of its parts; those that are None are left out.

    Args:
        path: Where it will lie, for the message.

    Raises:
        ValueError: As in :func:`write_sample`.
    """
    tensors = {name: tensor for name, tensor in parts.items() if tensor is not None}
    try:
        check_parts(tensors)
    except ValueError as error:
        raise ValueError(f"{path.name} was not written: {error}.") from None
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


class SampleFolder:
    """The samples of a folder, by index in the order of their names. Opening it reads every file once.

    Args:
        first, end: The part of the folder that is used, as in a slice.

    Attributes:
        shapes: What must be equal in a batch, for each sample.

    Raises:
        ValueError: The folder holds no samples, a file is not one or has values that are not finite, or they are for
            different models.
    """

    def __init__(self, folder: Path, first: int = 0, end: int | None = None) -> None:
        found = sample_paths(folder)
        self.folder = folder
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
        shapes = [read_shapes(path) for path in self.paths]
        check_same_widths(self.paths, shapes)
        self._parts = shapes
        self.shapes = [BatchShape.of(each) for each in shapes]

    def check_fits(self, expected: Mapping[str, int], even: bool = True) -> None:
        """Refuse a model that the samples were not made for.

        Args:
            expected: Width of every part that the model needs, by the part's name.
            even: Whether its tokens are 2 x 2 cells, so that a latent's sides are even.

        Raises:
            ValueError: A width or side is not the model's.
        """
        for path, shapes in zip(self.paths, self._parts, strict=True):
            check_model_widths(path, shapes, expected, even)

    def shapes_for(self, masks: bool) -> list[BatchShape]:
        """What must be equal in a batch, for each sample; ``masks`` as in :meth:`BatchShape.of`."""
        return [BatchShape.of(each, masks) for each in self._parts]

    def fingerprint(self) -> dict[str, Value]:
        """What a training remembers of these samples, as :func:`folder_record.fingerprint_of_samples` says it."""
        return fingerprint_of_samples(self.folder, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The stacked float32 parts of some samples of equal shapes.

        Returns:
            The parts by name, and the mask of the text as in :class:`Batch`.
        """
        loaded: dict[str, list[Tensor]] = {}
        for index in indices:
            with safe_open(self.paths[index], "pt") as file:
                for name in file.keys():
                    loaded.setdefault(name, []).append(file.get_tensor(name).float())
        lengths = torch.tensor([len(text) for text in loaded["prompt_embeds"]])
        longest = int(lengths.max())
        mask = None if (lengths == longest).all() else torch.arange(longest) < lengths[:, None]
        loaded["prompt_embeds"] = [
            torch.cat([text, text.new_zeros(longest - len(text), text.shape[1])]) for text in loaded["prompt_embeds"]
        ]
        return {name: torch.stack(parts) for name, parts in loaded.items()}, mask

    def batch(self, indices: Sequence[int], positions: Sequence[int], seed: int, step: int) -> Batch:
        """Some samples with noise that depends on (seed, step, position in the global batch) alone."""
        text, mask = self.load(indices)
        latents = text.pop("latents")
        drawn = [noise_at(latents.shape[1:], seed, step, position) for position in positions]
        noise = torch.stack([noise for noise, _ in drawn])
        return Batch(latents, text, noise, torch.stack([sigma for _, sigma in drawn]), mask)


def noise_at(shape: Sequence[int], seed: int, step: int, position: int) -> tuple[Tensor, Tensor]:
    """Noise and noise level of one position in a global batch, independent of the process that computes it.

    Levels are uniform, as in the reference training.
    """
    digest = hashlib.blake2b(f"{seed} {step} {position}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    sigma = 1 - torch.rand((), generator=generator)
    return torch.randn(tuple(shape), generator=generator), sigma
