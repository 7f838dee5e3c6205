"""Measures of the experiments: distance of a windowed tiny FLUX from the same model with dense attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear, load_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import sdedit
from clear_core.weights import read_clear_file

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.codec import decode, encode
from ..tiny_flux.data import draw_latents, held_out_scenes
from ..tiny_flux.evaluate import psnr, seeded_noise
from ..tiny_flux.model import GUIDANCE, velocity
from ..tiny_flux.weights import load_tiny_flux
from ..world import Scene, draw_scene

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
# Side in px of the cells of ``layout``: a cell's mean colour shows which thing is there, not how it is drawn.
CELL = 32


@dataclass(frozen=True)
class Bench:
    """Inputs and the dense model's results, the same for every window.

    Attributes:
        scenes: Held-out scenes.
        size: (height, width) in pixels.
        latents, noise: (B, 16, h, w).
        flows: The dense model's flow by noise level.
        pictures: (P, 3, H, W), the dense model's SDEdit of the enlarged images of the first scenes.
        starts: (P, 16, h, w) latents of those enlarged images.
    """

    scenes: tuple[Scene, ...]
    size: tuple[int, int]
    latents: Tensor
    noise: Tensor
    flows: dict[float, Tensor]
    pictures: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Quality:
    """One window compared with the dense model.

    Attributes:
        velocity_mse: Mean squared distance of the flows by noise level.
        psnr: Mean over the images, dB.
        ssim: Mean structural similarity of the images, at most 1; None without scikit-image.
        layout: Mean correlation of the images' means over 32 x 32 px, at most 1.
    """

    velocity_mse: dict[float, float]
    psnr: float | None = None
    ssim: float | None = None
    layout: float | None = None

    @property
    def mean_mse(self) -> float:
        """Mean over the noise levels."""
        return sum(self.velocity_mse.values()) / len(self.velocity_mse)


@torch.no_grad()
def flow_at(
    model: FluxTransformer2DModel, scenes: Sequence[Scene], latents: Tensor, noise: Tensor, level: float
) -> Tensor:
    """The model's flow on noisy latents, scene by scene."""
    flows: list[Tensor] = []
    for scene, latent, grain in zip(scenes, latents, noise, strict=True):
        one = torch.ones(1)
        flows.append(
            velocity(
                model,
                (level * grain + (1 - level) * latent)[None],
                one * level,
                *encode_captions([scene.caption]),
                one * GUIDANCE,
            )
        )
    return torch.cat(flows)


@torch.no_grad()
def redraw(model: FluxTransformer2DModel, scenes: Sequence[Scene], starts: Tensor, noise: Tensor) -> Tensor:
    """(P, 3, H, W): an SDEdit pass over enlarged images, one for each start."""
    pictures: list[Tensor] = []
    # There may be fewer starts than scenes.
    for scene, start, grain in zip(scenes, starts, noise, strict=False):
        denoiser = FluxDenoiser(model, *encode_captions([scene.caption]), GUIDANCE)
        pictures.append(decode(sdedit(denoiser, start[None], grain[None], steps=10, strength=0.4)))
    return torch.cat(pictures).clamp(0, 1)


def set_bench(teacher: FluxTransformer2DModel, scenes: int, pictures: int, size: tuple[int, int] = (512, 512)) -> Bench:
    """Draws the held-out scenes and runs the dense model."""
    chosen = tuple(held_out_scenes(scenes))
    latents, noise = draw_latents(chosen, size), seeded_noise(scenes, size, 7)
    flows = {level: flow_at(teacher, chosen, latents, noise, level) for level in LEVELS}
    half = (
        torch.stack(
            [
                torch.from_numpy(draw_scene(scene, size[0] // 2, size[1] // 2)).permute(2, 0, 1)
                for scene in chosen[:pictures]
            ]
        )
        if pictures
        else torch.zeros(0, 3, size[0] // 2, size[1] // 2)
    )
    starts = encode(F.interpolate(half, scale_factor=2, mode="bicubic").clamp(0, 1))
    made = redraw(teacher, chosen, starts, noise) if pictures else torch.zeros(0, 3, *size)
    return Bench(chosen, size, latents, noise, flows, made, starts)


def judge(bench: Bench, student: FluxTransformer2DModel) -> Quality:
    """Compares a student with the dense model."""
    mse = {
        level: (flow_at(student, bench.scenes, bench.latents, bench.noise, level) - flow).square().mean().item()
        for level, flow in bench.flows.items()
    }
    if not len(bench.pictures):
        return Quality(mse)
    mine = redraw(student, bench.scenes, bench.starts, bench.noise)
    pairs = list(zip(mine, bench.pictures, strict=True))
    return Quality(mse, mean(psnr(*pair) for pair in pairs), mean_ssim(pairs), mean(layout(*pair) for pair in pairs))


def windowed(spec: ClearSpec, weights: Path | None = None, model: Path | None = None) -> FluxTransformer2DModel:
    """The tiny FLUX with windows, distilled if ``weights`` are given."""
    transformer = load_tiny_flux(model)
    file = None if weights is None else read_clear_file(weights)
    if file is not None:
        load_clear(transformer, file)
    # As in the distillation: nothing is stretched.
    apply_clear(
        transformer,
        spec,
        spatial_weights=file.spatial_weights() if file and spec.pools else None,
        ntk_factor=1.0,
        proportional_attention="off",
    )
    return transformer.eval().requires_grad_(False)


def layout(image: Tensor, reference: Tensor, cell: int = CELL) -> float:
    """Correlation of two (3, H, W) images' means over cells of ``cell`` x ``cell`` px."""
    both = torch.stack([F.avg_pool2d(each, cell).flatten() for each in (image, reference)])
    return torch.corrcoef(both)[0, 1].item()


def mean_ssim(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Mean structural similarity of pairs of images; None without scikit-image."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return mean(structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1.0) for a, b in pairs)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
