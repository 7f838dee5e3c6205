"""Pictures, and a VAE for them that the stock loader loads: TAEF1's form with seeded random weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

VAE_NAME = "taef1"
"""What the stock VAELoader lists it as."""


def write_vae_files(folder: Path, seed: int = 0, name: str = VAE_NAME, channels: int = 16) -> None:
    """Writes encoder and decoder of a small VAE of the host's into a models/vae_approx folder.

    The weights are random, scaled so that latents and pixels are of order one: pictures are unrecognisable, but every
    pixel and every latent counts.
    """
    from comfy.taesd.taesd import Decoder, Encoder

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for part, module in (("encoder", Encoder(channels)), ("decoder", Decoder(channels))):
        weights = {}
        for key, weight in module.state_dict().items():
            noise = torch.randn(weight.shape, generator=generator)
            weights[key] = noise * (2 / weight[0].numel()) ** 0.5 * 0.8 if weight.ndim == 4 else noise * 0.1
        if part == "decoder":
            last = max(int(key.split(".")[0]) for key in weights)
            weights[f"{last}.weight"] *= 0.2
            weights[f"{last}.bias"] = torch.full((3,), 0.5)
        save_file(weights, folder / f"{name}_{part}.safetensors")


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """(B, H, W, 3) in 0 to 1: smooth shapes with detail, different in every item and at every position."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, max(2, height // 24), max(2, width // 24), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand(batch, 3, height, width, generator=generator)).clamp(0, 1).movedim(1, -1)


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Writes :func:`picture` as a file for the stock LoadImage."""
    pixels = (picture(height, width, seed=seed)[0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path, compress_level=1)


def write_halves(path: Path) -> None:
    """Writes a picture whose left part is white and whose right part is black, for the stock LoadImageMask."""
    left = Image.new("RGB", (96, 64))
    left.paste((255, 255, 255), (0, 0, 40, 64))
    left.save(path)


def write_upscale_model(path: Path, scale: int = 4, width: int = 8, seed: int = 0) -> None:
    """Writes a small upscale model (SRVGGNetCompact) with seeded random weights for the stock loader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    sides = [3, width, width, 3 * scale**2]
    weights = {}
    for number, (before, after) in enumerate(itertools.pairwise(sides)):
        weights[f"body.{2 * number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * 0.05
        weights[f"body.{2 * number}.bias"] = torch.randn(after, generator=generator) * 0.01
        if number < len(sides) - 2:
            weights[f"body.{2 * number + 1}.weight"] = torch.full((after,), 0.25)
    save_file(weights, path)
