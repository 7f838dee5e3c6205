"""The tiny FLUX: FLUX.1's architecture at hidden size 256, as a diffusers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clear_core.integrations.flux_denoiser import pack_latent, unpack_latent
from clear_core.integrations.frame import grid_ids

from .caption import CONTEXT, POOLED
from .codec import CHANNELS

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

# Heads stay at 128 numbers, as in every FLUX: ComfyUI infers the number of heads from it.
CONFIG = {
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

# The guidance input is there as in FLUX.1-dev, but there is no guidance: it is always asked this.
GUIDANCE = 1.0


def new_tiny_flux(seed: int = 0) -> FluxTransformer2DModel:
    """An untrained tiny FLUX whose blocks start as the identity (modulation and output at zero)."""
    from diffusers import FluxTransformer2DModel

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
    """The model's flow, ``noise - x`` as it sees it, for a noise level and a guidance per picture.

    Args:
        latents: (B, 16, H, W), ``sigma * noise + (1 - sigma) * x``; H and W even.
        sigma: (B,) noise level, 0 to 1.
        context: (B, T, 128) and pooled: (B, 64), from the caption encoder.
        guidance: (B,) guidance strength, ``GUIDANCE``.

    Returns:
        (B, 16, H, W).
    """
    grid = (latents.shape[2] // 2, latents.shape[3] // 2)
    tokens = model(
        hidden_states=pack_latent(latents),
        timestep=sigma,
        guidance=guidance,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        img_ids=grid_ids(grid).to(latents.device),
        txt_ids=torch.zeros(context.shape[1], 3, device=latents.device),
        return_dict=False,
    )[0]
    return unpack_latent(tokens, grid)
