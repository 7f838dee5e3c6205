"""Evaluates a small model on held-out scenes; the tiny FLUX: ``python -m demo.tiny_flux.evaluate``.

Prints one JSON line: the error of its flow by noise level, and how well it distinguishes captions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clear_core.sdedit import euler, sdedit_sigmas

from ..training import Recipe, Velocity
from ..world import Scene
from .caption import encode_captions
from .codec import decode
from .data import draw_latents, held_out_scenes
from .train import RECIPE, own_velocity
from .weights import load_tiny_flux

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def seeded_noise(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """(count, 16, h, w) noise for images of ``size`` = (height, width) pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, size[0] // 8, size[1] // 8, generator=generator)


@torch.no_grad()
def flow_error(
    model: nn.Module, scenes: Sequence[Scene], size: tuple[int, int], seed: int = 0, velocity: Velocity = own_velocity
) -> dict[float, float]:
    """Mean squared error of the predicted flow by noise level, with the right captions."""
    latents = draw_latents(scenes, size)
    noise = seeded_noise(len(scenes), size, seed)
    context, pooled = encode_captions([scene.caption for scene in scenes])
    errors: dict[float, float] = {}
    for level in LEVELS:
        sigma = torch.full((len(scenes),), level)
        flow = velocity(model, level * noise + (1 - level) * latents, sigma, context, pooled)
        errors[level] = (flow - (noise - latents)).square().mean().item()
    return errors


@torch.no_grad()
def caption_match(
    model: nn.Module,
    scenes: Sequence[Scene],
    size: tuple[int, int],
    level: float = 0.9,
    velocity: Velocity = own_velocity,
) -> float:
    """Share of images whose own caption gives a smaller error than another image's, 0 to 1; chance is 0.5.

    The same noisy latents are denoised under both captions.
    """
    latents = draw_latents(scenes, size)
    noise = seeded_noise(len(scenes), size, 1)
    noisy = level * noise + (1 - level) * latents
    sigma = torch.full((len(scenes),), level)
    captions = [scene.caption for scene in scenes]
    errors: list[Tensor] = []
    for texts in (captions, captions[1:] + captions[:1]):
        flow = velocity(model, noisy, sigma, *encode_captions(texts))
        errors.append((flow - (noise - latents)).square().mean(dim=(1, 2, 3)))
    return (errors[0] < errors[1]).float().mean().item()


def contact_sheet(pictures: Tensor, columns: int) -> Tensor:
    """(3, H, W), 0 to 1, of (B, 3, h, w) pictures in rows of ``columns``."""
    rows = [torch.cat(list(pictures[i : i + columns]), dim=2) for i in range(0, len(pictures), columns)]
    return torch.cat(rows, dim=1).clamp(0, 1)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0 to 1."""
    return -10 * torch.log10((image - reference).square().mean().clamp(min=1e-10)).item()


def save_png(picture: Tensor, path: Path) -> None:
    """Writes a (3, H, W) image."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def run(recipe: Recipe, load: Callable[[Path | None], Any], description: str) -> None:
    """The command line of a model's evaluation; ``load`` reads a file, by default the committed one."""
    parser = argparse.ArgumentParser(prog=f"python -m demo.{recipe.name}.evaluate", description=description)
    parser.add_argument("--weights", type=Path, help="model file or training state; the committed model by default")
    parser.add_argument("--count", type=int, default=32, help="held-out scenes")
    parser.add_argument("--sheet", type=Path, help="also write a PNG: drawn pictures above, sampled ones below")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    model, size, scenes = load(args.weights), tuple(args.size), held_out_scenes(args.count)
    errors = flow_error(model, scenes, size, velocity=recipe.velocity)
    print(
        json.dumps(
            {
                "size": size,
                "flow_mse": {str(k): round(v, 5) for k, v in errors.items()},
                "caption_match": caption_match(model, scenes, size, velocity=recipe.velocity),
            }
        )
    )
    if args.sheet:
        first = scenes[:6]
        told = encode_captions([scene.caption for scene in first])
        with torch.no_grad():
            latents = euler(
                lambda latent, sigma: recipe.velocity(model, latent, latent.new_full((len(first),), sigma), *told),
                seeded_noise(len(first), size, 2),
                sdedit_sigmas(args.steps, 1.0),
            )
        save_png(contact_sheet(torch.cat([decode(draw_latents(first, size)), decode(latents)]), 6), args.sheet)
        print("\n".join(scene.caption for scene in first))


if __name__ == "__main__":
    run(RECIPE, load_tiny_flux, (__doc__ or "").partition("\n")[0])
