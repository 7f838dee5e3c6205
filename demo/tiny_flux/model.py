"""The tiny FLUX: FLUX.1's architecture at hidden size 256, as a diffusers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from clear_core import token_grid
from clear_core.integrations.flux_denoiser import flux_call, unpack_latent

from .caption import CONTEXT, POOLED
from .codec import CHANNELS

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


class Config(TypedDict):
    """Arguments of ``FluxTransformer2DModel``."""

    patch_size: int
    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    axes_dims_rope: tuple[int, int, int]


# The head size stays 128, as in every FLUX: ComfyUI infers the number of heads from it.
CONFIG: Config = {
    "patch_size": 1,
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": CONTEXT,
    "pooled_projection_dim": POOLED,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}

# The model has the guidance input of FLUX.1-dev, but no guidance: the input always has this value.
GUIDANCE = 1.0


def new_tiny_flux(seed: int = 0) -> FluxTransformer2DModel:
    """An untrained tiny FLUX whose blocks start as the identity (modulation and output at zero)."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(**CONFIG)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (
            name.endswith("norm.linear")
            or name.endswith("norm1.linear")
            or name.endswith("norm1_context.linear")
            or name == "proj_out"
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def velocity(
    model: nn.Module, latents: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor
) -> Tensor:
    """The model's prediction of ``noise - x``, for a noise level and a guidance scale per image.

    Args:
        latents: (B, 16, H, W), ``sigma * noise + (1 - sigma) * x``; H and W even.
        sigma: (B,) noise level, 0 to 1.
        context: (B, T, 128) and pooled: (B, 64), from the caption encoder.
        guidance: (B,) guidance scales, ``GUIDANCE``.

    Returns:
        (B, 16, H, W).
    """
    tokens = flux_call(model, latents, sigma, context, pooled, guidance)
    return unpack_latent(tokens, token_grid(*latents.shape[2:]))
