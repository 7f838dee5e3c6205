"""The tiny SD3: the architecture of SD3.5 at hidden size 192, as a diffusers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from ..tiny_flux.caption import CONTEXT, POOLED
from ..tiny_flux.codec import CHANNELS

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel


class Config(TypedDict):
    """Arguments of ``SD3Transformer2DModel``."""

    sample_size: int
    patch_size: int
    in_channels: int
    out_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    caption_projection_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int
    qk_norm: str


# As many heads of 64 as blocks, as in every SD3: ComfyUI infers one from the other. The table of positions spans the
# same 64 units as the real one (``sample_size / patch_size``), in 32 steps instead of 192.
CONFIG: Config = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "joint_attention_dim": CONTEXT,
    "caption_projection_dim": 192,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}

# Where the noise level 1 is, as in every SD3.
TIMESTEPS = 1000.0


def new_tiny_sd3(seed: int = 0) -> SD3Transformer2DModel:
    """An untrained tiny SD3 whose blocks start as the identity (modulation and output at zero)."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SD3Transformer2DModel(**CONFIG)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (
            name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out"
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def velocity(model: nn.Module, latents: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The model's prediction of ``noise - x``, for a noise level per image.

    Args:
        latents: (B, 16, H, W), ``sigma * noise + (1 - sigma) * x``; H and W even, at most 64.
        sigma: (B,) noise level, 0 to 1.
        context: (B, T, 128) and pooled: (B, 64), from the caption encoder.

    Returns:
        (B, 16, H, W).
    """
    return model(
        hidden_states=latents,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=sigma * TIMESTEPS,
        return_dict=False,
    )[0]
