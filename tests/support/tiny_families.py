"""Small diffusers pipelines of the five families without text encoders, and their VAEs, all of random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from clear_core.distill.families import TEACHINGS, Teaching

from .diffusers_relatives import RELATIVES
from .distillation import CONFIG

# As wide as the family's latents: 4 x 4 channels of a token, but for FLUX.2's 16 x 1 cells.
CHANNELS = 4

KINDS = ("FLUX.1", "Chroma", "FLUX.2", "Qwen-Image", "SD3.5 Large")


def teaching_of(kind: str) -> Teaching:
    return next(each for each in TEACHINGS if kind.startswith(each.family.name))


def transformer(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind == "FLUX.1":
        return diffusers.FluxTransformer2DModel(**CONFIG).eval()
    return RELATIVES[kind].build(seed)


def vae(kind: str, seed: int = 0) -> Any:
    """A VAE of a factor of 8 with statistics that are not the identity."""
    torch.manual_seed(seed)
    if kind == "Qwen-Image":
        means, spreads = torch.linspace(-1, 1, CHANNELS).tolist(), torch.linspace(0.5, 2, CHANNELS).tolist()
        return diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=CHANNELS, num_res_blocks=1, latents_mean=means, latents_std=spreads
        ).eval()
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": CHANNELS,
        "norm_num_groups": 4,
    }
    if kind == "FLUX.2":
        made = diffusers.AutoencoderKLFlux2(**sizes).eval()
        made.bn.running_mean.copy_(torch.linspace(-1, 1, 4 * CHANNELS))
        made.bn.running_var.copy_(torch.linspace(0.5, 2, 4 * CHANNELS))
        return made
    return diffusers.AutoencoderKL(**sizes, shift_factor=0.1, scaling_factor=0.5).eval()


def pipeline(kind: str) -> Any:
    """The family's pipeline with model, VAE and scheduler."""
    parts: dict[str, Any] = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": vae(kind),
        "text_encoder": None,
        "tokenizer": None,
        "transformer": transformer(kind),
    }
    if kind == "FLUX.1":
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
    if kind == "SD3.5 Large":
        names = ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        parts |= dict.fromkeys(names)
    made = getattr(diffusers, teaching_of(kind).pipeline)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def text_parts(kind: str, tokens: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Text parts of one sample."""
    rng = torch.Generator().manual_seed(seed)
    teaching = teaching_of(kind)
    widths = teaching.needs(transformer(kind).config, teaching.guidance)
    return {
        name: torch.randn(*((tokens, width) if name.endswith("embeds") else (width,)), generator=rng)
        for name, width in widths.items()
        if name != "latents"
    }
