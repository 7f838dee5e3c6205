"""Samples from a folder of pictures, or from the teacher itself, through a diffusers FLUX pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..integrations.flux_denoiser import unpack_latent
from .samples import sample_path, write_sample

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# Latents per pixel side times patch: a picture's sides are multiples of this.
CELL = 16


def captioned_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Pictures of a folder and the captions in the .txt files of the same names; "" where there is none.

    Raises:
        ValueError: The folder holds no pictures.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"{folder} holds no pictures; expected {', '.join(PICTURES)}.")
    texts = (path.with_suffix(".txt") for path in found)
    return [
        (path, text.read_text(encoding="utf-8").strip() if text.exists() else "")
        for path, text in zip(found, texts, strict=True)
    ]


def fitted(picture: Image, pixels: int) -> Tensor:
    """A picture at about ``pixels`` squared and its own aspect, sides cut to multiples of 16.

    Returns:
        (1, 3, H, W), -1 to 1.
    """
    import numpy as np
    from PIL.Image import Resampling

    picture = picture.convert("RGB")
    scale = pixels / (picture.width * picture.height) ** 0.5
    width, height = (max(CELL, round(side * scale / CELL) * CELL) for side in picture.size)
    # The resized picture covers the wanted size; what juts out is cut off evenly.
    cover = max(width / picture.width, height / picture.height)
    picture = picture.resize(
        (max(width, round(picture.width * cover)), max(height, round(picture.height * cover))), Resampling.LANCZOS
    )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    array = np.asarray(picture.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def samples_from_pictures(pipeline: FluxPipeline, folder: Path, out: Path, pixels: int) -> Iterator[Path]:
    """Encodes captioned pictures; those already in ``out`` are passed over.

    Args:
        pixels: Square root of the wanted area, in pixels.
    """
    from PIL import Image

    vae = pipeline.vae
    for number, (path, caption) in enumerate(captioned_pictures(folder)):
        if not sample_path(out, number).exists():
            picture = fitted(Image.open(path), pixels).to(vae.device, vae.dtype)
            generator = torch.Generator().manual_seed(number)
            latents = vae.encode(picture).latent_dist.sample(generator)
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
            write_sample(out, number, latents[0].float(), *text_of(pipeline, caption))
        yield sample_path(out, number)


@torch.no_grad()
def samples_from_teacher(
    pipeline: FluxPipeline,
    captions: Sequence[str],
    out: Path,
    *,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    seed: int,
) -> Iterator[Path]:
    """Pictures that the teacher makes for captions; those already in ``out`` are passed over.

    Args:
        size: (height, width) in pixels, multiples of 16.
        steps, guidance: Of the sampling.
        seed: The picture of caption i starts from noise of seed + i.
    """
    for number, caption in enumerate(captions):
        if not sample_path(out, number).exists():
            prompt_embeds, pooled = text_of(pipeline, caption)
            tokens = pipeline(
                prompt_embeds=prompt_embeds[None],
                pooled_prompt_embeds=pooled[None],
                height=size[0],
                width=size[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                generator=torch.Generator().manual_seed(seed + number),
            ).images
            latents = unpack_latent(tokens, (size[0] // CELL, size[1] // CELL))
            write_sample(out, number, latents[0].float(), prompt_embeds, pooled)
        yield sample_path(out, number)


def text_of(pipeline: FluxPipeline, caption: str) -> tuple[Tensor, Tensor]:
    """(T, text width) and (pooled width,) of one caption."""
    prompt_embeds, pooled, _ = pipeline.encode_prompt(prompt=caption, prompt_2=None)
    return prompt_embeds[0], pooled[0]
