"""The embedded default: a small FLUX with random weights. Only this file knows that there is nothing trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from clear_core.integrations.flux_denoiser import FluxDenoiser

SEED = 0
TEXT_TOKENS = 64
TEXT_WIDTH = 64
POOLED_WIDTH = 32
LATENT_CHANNELS = 16
HEADS = 2
HEAD_SIZE = 128

ABOUT = """\
Model:     FLUX.1's blocks, head size and rotary axes, but 1 + 1 blocks for 19 + 38 and 2 heads for 24. Its weights are
           random: the latents show nothing, and no figure here says anything about how pictures look."""


def build_denoiser() -> FluxDenoiser:
    """The small FLUX with its conditioning, the same on every call; torch's own random state is left as it was."""
    from diffusers import FluxTransformer2DModel

    from clear_core.integrations.flux_denoiser import FluxDenoiser

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=HEAD_SIZE,
            num_attention_heads=HEADS, joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=POOLED_WIDTH,
            guidance_embeds=True, axes_dims_rope=(16, 56, 56)).eval().requires_grad_(False)
        return FluxDenoiser(transformer, torch.randn(1, TEXT_TOKENS, TEXT_WIDTH), torch.randn(1, POOLED_WIDTH))
