"""A diffusers FLUX as a plain function of latent and sigma, with one conditioning; packing of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..layout import token_grid
from .frame import grid_ids

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


def pack_latent(latent: Tensor) -> Tensor:
    """2 x 2 latents to one token.

    Args:
        latent: (B, C, H, W), H and W even.

    Returns:
        (B, H/2 * W/2, 4 C), row-major tokens; within a token channel first, then row, then column.
    """
    if latent.ndim != 4 or latent.shape[2] % 2 or latent.shape[3] % 2:
        raise ValueError(
            f"the latent has shape {tuple(latent.shape)}; expected (batch, channels, height, width) with even sides."
        )
    cells = latent.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h, 2, w, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack_latent(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Back from (B, h * w, 4 C) to (B, C, 2h, 2w)."""
    cells = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, grid)  # (B, h, w, C, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def flux_arguments(
    latent: Tensor, sigma: Tensor, prompt_embeds: Tensor, pooled: Tensor, guidance: Tensor | None
) -> dict[str, Any]:
    """Named arguments of a diffusers FLUX.1, which its ControlNets take, too; those of :func:`flux_call`."""
    return {
        "hidden_states": pack_latent(latent),
        "encoder_hidden_states": prompt_embeds,
        "pooled_projections": pooled,
        "timestep": sigma,
        "img_ids": grid_ids(token_grid(*latent.shape[2:])).to(latent.device),
        "txt_ids": torch.zeros(prompt_embeds.shape[1], 3, device=latent.device),
        "guidance": guidance,
        "return_dict": False,
    }


def flux_call(
    model: nn.Module, latent: Tensor, sigma: Tensor, prompt_embeds: Tensor, pooled: Tensor, guidance: Tensor | None
) -> Tensor:
    """One call of a diffusers FLUX.1.

    Args:
        model: The transformer; may be wrapped (DDP, FSDP, DeepSpeed).
        latent: (B, C, H, W) at noise level ``sigma``, H and W even.
        sigma: (B,), 0 to 1.
        prompt_embeds: (B, T, text width).
        pooled: (B, pooled width).
        guidance: (B,) guidance scales; None for models without the input.

    Returns:
        (B, H/2 * W/2, 4 C), the velocity ``noise - image`` as tokens.
    """
    return model(**flux_arguments(latent, sigma, prompt_embeds, pooled, guidance))[0]


@dataclass(frozen=True)
class FluxDenoiser:
    """Velocity of a FLUX model under one conditioning.

    Attributes:
        transformer: The model, with or without CLEAR.
        prompt_embeds: (B or 1, T, text width).
        pooled: (B or 1, pooled width).
        guidance: Guidance scale of the guidance-distilled models; not used by others.
    """

    transformer: FluxTransformer2DModel
    prompt_embeds: Tensor
    pooled: Tensor
    guidance: float = 3.5

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        """(B, C, H, W) latent at noise level ``sigma`` (0 to 1) to its velocity ``noise - image``, same shape."""
        batch = latent.shape[0]
        guidance = latent.new_full((batch,), self.guidance) if self.transformer.config["guidance_embeds"] else None
        prompt_embeds, pooled = self.prompt_embeds.expand(batch, -1, -1), self.pooled.expand(batch, -1)
        sigmas = latent.new_full((batch,), sigma)
        velocity = flux_call(self.transformer, latent, sigmas, prompt_embeds, pooled, guidance)
        return unpack_latent(velocity, token_grid(*latent.shape[2:]))
