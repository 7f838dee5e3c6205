"""Samples from a folder of images, or from the teacher itself, through a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layout import TOKEN_PIXELS
from ..number_checks import check_number
from .disk import check_space
from .families import teaching_of
from .inputs import Picture
from .pictures import read_picture
from .samples import sample_bytes, sample_path, write_sample

if TYPE_CHECKING:
    from PIL.Image import Image

# A diffusers pipeline. Its own annotations ask for torch.FloatTensor, which no tensor on a device is.
Pipeline = Any

MOST_PIXELS = 1 << 14
"""Longest side that is asked for; the positions of no tested model reach further."""

MOST_SEED = (1 << 63) - 1 - (1 << 32)
"""So that every index fits behind it."""


def fitted(image: Image, pixels: int) -> Tensor:
    """An image resized to about ``pixels`` squared at its own aspect ratio, sides cropped to whole tokens.

    Returns:
        (1, 3, H, W), -1 to 1.
    """
    import numpy as np
    from PIL.Image import Resampling

    image = image.convert("RGB")
    scale = pixels / (image.width * image.height) ** 0.5
    width, height = (max(TOKEN_PIXELS, round(side * scale / TOKEN_PIXELS) * TOKEN_PIXELS) for side in image.size)
    # The resized image covers the wanted size; the excess is cropped evenly on both sides.
    cover = max(width / image.width, height / image.height)
    image = image.resize(
        (max(width, round(image.width * cover)), max(height, round(image.height * cover))), Resampling.LANCZOS
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    array = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


@dataclass(frozen=True)
class Drawing:
    """How the teacher makes its images.

    Attributes:
        size: (height, width) in pixels, multiples of 16.
        steps, guidance: Settings of the sampling.
        seed: The image of caption i starts from noise of seed + i.

    Raises:
        ValueError: A value is out of range.
    """

    size: tuple[int, int]
    steps: int
    guidance: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name, side in zip(("height", "width"), self.size, strict=True):
            check_number(name, side, TOKEN_PIXELS, MOST_PIXELS, whole=True)
            if side % TOKEN_PIXELS:
                raise ValueError(f"{name} is {side}; expected a multiple of {TOKEN_PIXELS} px.")
        check_number("steps", self.steps, 1, whole=True)
        check_number("guidance", self.guidance)
        check_number("seed", self.seed, 0, MOST_SEED, whole=True)


@dataclass(frozen=True)
class Share:
    """The indices of one process among several: its rank, then every ``of``-th."""

    rank: int = 0
    of: int = 1

    def indices(self, total: int) -> range:
        return range(self.rank, total, self.of)


ALL = Share()


def check_pixels(pixels: int) -> None:
    """Refuse a size that no picture can be fitted to.

    Raises:
        ValueError: It is out of range.
    """
    check_number("pixels", pixels, TOKEN_PIXELS, MOST_PIXELS, whole=True)


def samples_from_pictures(
    pipeline: Pipeline, pictures: Sequence[Picture], out: Path, pixels: int, share: Share = ALL
) -> Iterator[Path]:
    """Encodes captioned images; skips those already in ``out``.

    Args:
        pixels: Square root of the wanted area, in pixels.
        share: Which of them; a sample depends on its index alone, not on the process that makes it.

    Raises:
        ValueError: A value is out of range, a picture has changed, or an image gives a latent that is not finite.
        DiskFullError: The disk has no room for the samples.
    """
    check_pixels(pixels)

    def make(index: int) -> dict[str, Tensor]:
        picture = fitted(read_picture(pictures[index].content()), pixels)
        return {"latents": latents_of(pipeline, picture, seed=index), **text_of(pipeline, pictures[index].caption)}

    return _samples(out, len(pictures), share, make)


def samples_from_teacher(
    pipeline: Pipeline, captions: Sequence[str], out: Path, drawing: Drawing, share: Share = ALL
) -> Iterator[Path]:
    """Images of the teacher for captions; skips those already in ``out``.

    Args:
        share: As in :func:`samples_from_pictures`.

    Raises:
        ValueError: An image's latent is not finite.
        DiskFullError: The disk has no room for the samples.
    """

    def make(index: int) -> dict[str, Tensor]:
        text = text_of(pipeline, captions[index])
        seeded = replace(drawing, seed=drawing.seed + index)
        return {"latents": drawn_latents(pipeline, text, seeded), **text}

    return _samples(out, len(captions), share, make)


@torch.no_grad()
def _samples(out: Path, total: int, share: Share, make: Callable[[int], dict[str, Tensor]]) -> Iterator[Path]:
    """Makes the samples of a share that are missing; the first one shows how much room all missing ones need."""
    asked = False
    for index in share.indices(total):
        path = sample_path(out, index)
        if not path.exists():
            parts = make(index)
            if not asked:
                missing = sum(not sample_path(out, each).exists() for each in range(total))
                check_space(out, missing * len(sample_bytes(path, parts)), f"{missing} samples")
                asked = True
            write_sample(out, index, **parts)
        yield path


# What depends on the model's family: its text, its latents, and its own images.


def text_of(pipeline: Pipeline, caption: str) -> dict[str, Tensor]:
    """The text parts of a sample, by the names of :data:`sample_checks.PARTS`, without a batch's dimension."""
    return teaching_of(pipeline.transformer).text_of(pipeline, caption)


def latents_of(pipeline: Pipeline, picture: Tensor, seed: int) -> Tensor:
    """A picture in the scale of the model's latents.

    Args:
        picture: (1, 3, H, W), -1 to 1.
        seed: Of the draw from the encoder's distribution.

    Returns:
        (C, h, w), float32.
    """
    return teaching_of(pipeline.transformer).latents_of(pipeline, picture, seed)


def drawn_latents(pipeline: Pipeline, text: dict[str, Tensor], drawing: Drawing) -> Tensor:
    """An image of the teacher, before its VAE.

    Args:
        text: As :func:`text_of` gives it.

    Returns:
        (C, h, w), float32.
    """
    teaching = teaching_of(pipeline.transformer)
    return teaching.generate(pipeline, text, drawing.size, drawing.steps, drawing.guidance, drawing.seed)
