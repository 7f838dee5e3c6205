"""Measures of the experiments: distance of a windowed tiny FLUX from the same model with dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .objects import count_things, found_share

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
# Side in px of the cells of ``layout``: a cell's mean colour shows which thing is there, not how it is drawn.
CELL = 32
STRENGTH = 0.4
"""Of the SDEdit pass that makes the pictures, unless a bench is set with another one."""


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
        strength: Of SDEdit, above 0 and up to 1.
    """

    scenes: tuple[Scene, ...]
    size: tuple[int, int]
    latents: Tensor
    noise: Tensor
    flows: dict[float, Tensor]
    pictures: Tensor
    starts: Tensor
    strength: float = STRENGTH

    @property
    def found(self) -> float | None:
        """Share of the captions' things in the dense model's pictures; None without pictures."""
        return found_in(self.pictures, self.scenes) if len(self.pictures) else None


@dataclass(frozen=True)
class Quality:
    """One window, or another attention, compared with the dense model. What is of pictures is None without pictures.

    Attributes:
        velocity_mse: Mean squared distance of the flows by noise level.
        psnr: Mean over the images, dB.
        ssim: Mean structural similarity of the images, at most 1.
        layout: Mean correlation of the images' means over 32 x 32 px, at most 1.
        found: Share of the captions' things that are in the images, 0 to 1 (``objects.py``).
    """

    velocity_mse: dict[float, float]
    psnr: float | None = None
    ssim: float | None = None
    layout: float | None = None
    found: float | None = None

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
def redraw(
    model: FluxTransformer2DModel, scenes: Sequence[Scene], starts: Tensor, noise: Tensor, strength: float = STRENGTH
) -> Tensor:
    """(P, 3, H, W): an SDEdit pass over enlarged images, one for each start."""
    pictures: list[Tensor] = []
    # There may be fewer starts than scenes.
    for scene, start, grain in zip(scenes, starts, noise, strict=False):
        denoiser = FluxDenoiser(model, *encode_captions([scene.caption]), GUIDANCE)
        pictures.append(decode(sdedit(denoiser, start[None], grain[None], steps=10, strength=strength)))
    return torch.cat(pictures).clamp(0, 1)


def set_bench(
    teacher: FluxTransformer2DModel,
    scenes: int,
    pictures: int,
    size: tuple[int, int] = (512, 512),
    *,
    strength: float = STRENGTH,
    first: int = 0,
) -> Bench:
    """Draws the held-out scenes and runs the dense model.

    Args:
        scenes: How many, from the one of index ``first`` on.
        pictures: How many of these become pictures.
        size: (height, width) in px.
        strength: Of the SDEdit pass.
    """
    chosen = tuple(held_out_scenes(scenes, first))
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
    made = redraw(teacher, chosen, starts, noise, strength) if pictures else torch.zeros(0, 3, *size)
    return Bench(chosen, size, latents, noise, flows, made, starts, strength)


def judge(bench: Bench, student: FluxTransformer2DModel) -> Quality:
    """Compares a student with the dense model."""
    mse = {
        level: (flow_at(student, bench.scenes, bench.latents, bench.noise, level) - flow).square().mean().item()
        for level, flow in bench.flows.items()
    }
    if not len(bench.pictures):
        return Quality(mse)
    mine = redraw(student, bench.scenes, bench.starts, bench.noise, bench.strength)
    pairs = list(zip(mine, bench.pictures, strict=True))

    def over(measure: Callable[[Tensor, Tensor], float]) -> float:
        return mean(measure(*pair) for pair in pairs)

    return Quality(mse, over(psnr), over(ssim), over(layout), found_in(mine, bench.scenes))


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


def found_in(pictures: Tensor, scenes: Sequence[Scene]) -> float:
    """Share of the captions' things in (P, 3, H, W) pictures of the first P scenes, 0 to 1."""
    return found_share([count_things(picture, scene) for picture, scene in zip(pictures, scenes, strict=False)])


def ssim(image: Tensor, reference: Tensor) -> float:
    """Structural similarity of two (3, H, W) images in 0 to 1, at most 1 (Wang et al. 2004), as scikit-image has it."""
    from skimage.metrics import structural_similarity

    pair = (each.double().numpy() for each in (image, reference))
    found: Any = structural_similarity(*pair, channel_axis=0, data_range=1.0)
    return float(found)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
