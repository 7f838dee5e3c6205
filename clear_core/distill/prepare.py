"""Samples from a folder of images, or from the teacher itself, through a diffusers FLUX pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..integrations.flux_denoiser import unpack_latent
from ..layout import TOKEN_PIXELS, token_grid
from ..number_checks import check_number
from ..weights.filename import is_hidden
from .samples import sample_path, write_sample

if TYPE_CHECKING:
    from PIL.Image import Image

# A diffusers FluxPipeline. Its own annotations ask for torch.FloatTensor, which no tensor on a device is.
Pipeline = Any

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def captioned_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Images of a folder and their captions, from .txt files of the same names; "" without such a file.

    Raises:
        ValueError: The folder holds no images.
    """
    # Pipes would be waited for without end.
    seen = (path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
    found = sorted(path for path in seen if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no pictures; expected {', '.join(IMAGE_SUFFIXES)}.")
    texts = (path.with_suffix(".txt") for path in found)
    return [
        (path, text.read_text(encoding="utf-8").strip() if text.is_file() else "")
        for path, text in zip(found, texts, strict=True)
    ]


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


@torch.no_grad()
def samples_from_pictures(pipeline: Pipeline, folder: Path, out: Path, pixels: int) -> Iterator[Path]:
    """Encodes captioned images; skips those already in ``out``.

    Args:
        pixels: Square root of the wanted area, in pixels.

    Raises:
        ValueError: A value is out of range, or an image gives a latent that is not finite.
    """
    from PIL import Image

    check_number("pixels", pixels, TOKEN_PIXELS, whole=True)
    vae = pipeline.vae
    for index, (path, caption) in enumerate(captioned_pictures(folder)):
        if not sample_path(out, index).exists():
            image = fitted(Image.open(path), pixels).to(vae.device, vae.dtype)
            generator = torch.Generator().manual_seed(index)
            latents = vae.encode(image).latent_dist.sample(generator)
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
            write_sample(out, index, latents[0].float(), *text_of(pipeline, caption))
        yield sample_path(out, index)


@torch.no_grad()
def samples_from_teacher(
    pipeline: Pipeline,
    captions: Sequence[str],
    out: Path,
    *,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    seed: int,
) -> Iterator[Path]:
    """Images of the teacher for captions; skips those already in ``out``.

    Args:
        size: (height, width) in pixels, multiples of 16.
        steps, guidance: Settings of the sampling.
        seed: The image of caption i starts from noise of seed + i.

    Raises:
        ValueError: A value is out of range, or an image's latent is not finite.
    """
    for name, side in zip(("height", "width"), size, strict=True):
        check_number(name, side, TOKEN_PIXELS, whole=True)
        if side % TOKEN_PIXELS:
            raise ValueError(f"{name} is {side}; expected a multiple of {TOKEN_PIXELS} px.")
    check_number("steps", steps, 1, whole=True)
    check_number("guidance", guidance)
    for index, caption in enumerate(captions):
        if not sample_path(out, index).exists():
            prompt_embeds, pooled = text_of(pipeline, caption)
            tokens = pipeline(
                prompt_embeds=prompt_embeds[None],
                pooled_prompt_embeds=pooled[None],
                height=size[0],
                width=size[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                generator=torch.Generator().manual_seed(seed + index),
            ).images
            latents = unpack_latent(tokens, token_grid(*size, TOKEN_PIXELS))
            write_sample(out, index, latents[0].float(), prompt_embeds, pooled)
        yield sample_path(out, index)


def text_of(pipeline: Pipeline, caption: str) -> tuple[Tensor, Tensor]:
    """(T, text width) and (pooled width,) of one caption."""
    prompt_embeds, pooled, _ = pipeline.encode_prompt(prompt=caption, prompt_2=None)
    return prompt_embeds[0], pooled[0]
