"""What the experiments measure: distance of a windowed tiny FLUX to the same model with full attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec
from clear_core.distill.student import load_weights, make_student
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import sdedit

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.codec import decode, encode
from ..tiny_flux.data import draw_latents, held_out_scenes
from ..tiny_flux.evaluate import seeded_noise
from ..tiny_flux.model import GUIDANCE, velocity
from ..tiny_flux.weights import load_tiny_flux
from ..world import Scene, draw_scene

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
# A place's mean colour says what stands there, not how it is drawn.
PLACE = 32


@dataclass(frozen=True)
class Bench:
    """Inputs and the full model's answers, the same for every window.

    Attributes:
        scenes: Held out.
        size: (height, width) in pixels.
        latents, noise: (B, 16, h, w).
        flows: The full model's flow by noise level.
        pictures: (P, 3, H, W) that the full model makes of the enlarged pictures of the first scenes.
        starts: (P, 16, h, w) latents of those enlarged pictures.
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
    """One window against the full model.

    Attributes:
        velocity_mse: Mean squared distance of the flows by noise level.
        psnr: Mean over the pictures, dB.
        ssim: Mean structural similarity of the pictures, at most 1; None where scikit-image is missing.
        layout: Mean correlation of the pictures' means over 32 x 32 px, at most 1.
    """

    velocity_mse: dict[float, float]
    psnr: float | None = None
    ssim: float | None = None
    layout: float | None = None

    @property
    def mean_mse(self) -> float:
        return sum(self.velocity_mse.values()) / len(self.velocity_mse)


@torch.no_grad()
def flow_at(model: torch.nn.Module, scenes: Sequence[Scene], latents: Tensor, noise: Tensor, level: float) -> Tensor:
    """The model's flow on noisy latents, scene by scene."""
    flows = []
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
def redraw(model: torch.nn.Module, scenes: Sequence[Scene], starts: Tensor, noise: Tensor) -> Tensor:
    """(P, 3, H, W): an SDEdit pass over enlarged pictures."""
    pictures = []
    for scene, start, grain in zip(scenes, starts, noise, strict=True):
        denoiser = FluxDenoiser(model, *encode_captions([scene.caption]), GUIDANCE)
        pictures.append(decode(sdedit(denoiser, start[None], grain[None], steps=10, strength=0.4)))
    return torch.cat(pictures).clamp(0, 1)


def set_bench(teacher: torch.nn.Module, scenes: int, pictures: int, size: tuple[int, int] = (512, 512)) -> Bench:
    """Draws the held-out scenes and asks the full model."""
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


def judge(bench: Bench, student: torch.nn.Module) -> Quality:
    """How far a student is from the full model."""
    mse = {
        level: (flow_at(student, bench.scenes, bench.latents, bench.noise, level) - flow).square().mean().item()
        for level, flow in bench.flows.items()
    }
    if not len(bench.pictures):
        return Quality(mse)
    mine = redraw(student, bench.scenes, bench.starts, bench.noise)
    pairs = list(zip(mine, bench.pictures, strict=True))
    return Quality(mse, mean(psnr(*pair) for pair in pairs), mean_ssim(pairs), mean(layout(*pair) for pair in pairs))


def windowed(spec: ClearSpec, weights: Path | None = None, model: Path | None = None) -> torch.nn.Module:
    """The tiny FLUX with windows, distilled where ``weights`` are given."""
    student = make_student(load_tiny_flux(model), spec).eval()
    if weights is not None:
        load_weights(student, weights)
    return student.requires_grad_(False)


def psnr(picture: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0 to 1."""
    return -10 * torch.log10((picture - wanted).square().mean().clamp(min=1e-10)).item()


def layout(picture: Tensor, wanted: Tensor) -> float:
    """Correlation of two (3, H, W) pictures' means over 32 x 32 px."""
    both = torch.stack([F.avg_pool2d(each, PLACE).flatten() for each in (picture, wanted)])
    return torch.corrcoef(both)[0, 1].item()


def mean_ssim(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return mean(structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1.0) for a, b in pairs)


def mean(values: object) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
