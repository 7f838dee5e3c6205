"""FLUX.1 and Chroma: 2 x 2 cells of 16 channels are a token, positions come as ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...families import CHROMA, FLUX1
from ...integrations.flux_denoiser import flux_call, pack_latent, unpack_latent
from ...integrations.frame import grid_ids
from ...layout import TOKEN_PIXELS, token_grid
from .base import Parts, Teaching, Text, full, sampled, seeded

TOKEN_CELLS = 4
"""Latent cells of a token, 2 x 2."""


def _call(model: Any, noisy: Tensor, sigma: Tensor, text: Text, guidance: float | None) -> Tensor:
    assert text.pooled is not None  # FLUX.1's samples have it.
    tokens = flux_call(model, noisy, sigma, text.embeds, text.pooled, full(sigma, guidance))
    return unpack_latent(tokens, token_grid(*noisy.shape[2:]))


def _chroma_call(model: Any, noisy: Tensor, sigma: Tensor, text: Text, _guidance: float | None) -> Tensor:
    grid = token_grid(*noisy.shape[2:])
    mask = None
    if text.mask is not None:
        # Of text and image, as the pipeline extends it; bool hides, where the pipeline's numbers would add.
        mask = torch.nn.functional.pad(text.mask, (0, grid[0] * grid[1]), value=True)
    tokens = model(
        hidden_states=pack_latent(noisy),
        encoder_hidden_states=text.embeds,
        timestep=sigma,
        img_ids=grid_ids(grid).to(noisy.device),
        txt_ids=torch.zeros(text.embeds.shape[1], 3, device=noisy.device),
        attention_mask=mask,
        return_dict=False,
    )[0]
    return unpack_latent(tokens, grid)


def _text_of(pipeline: Any, caption: str) -> Parts:
    prompt_embeds, pooled, _ = pipeline.encode_prompt(prompt=caption, prompt_2=None)
    return {"prompt_embeds": prompt_embeds[0], "pooled": pooled[0]}


def _chroma_text_of(pipeline: Any, caption: str) -> Parts:
    embeds, _, mask, negative, _, negative_mask = pipeline.encode_prompt(prompt=caption, negative_prompt="")
    # The model sees no other text: leaving it out is the same, and shorter.
    return {"prompt_embeds": embeds[0][mask[0] > 0], "negative_embeds": negative[0][negative_mask[0] > 0]}


def latents_of(pipeline: Any, picture: Tensor, seed: int) -> Tensor:
    """(C, H, W): a picture through a VAE whose latents are shifted and scaled."""
    vae = pipeline.vae
    drawn = vae.encode(picture.to(vae.device, vae.dtype)).latent_dist.sample(seeded(seed))
    return ((drawn - vae.config.shift_factor) * vae.config.scaling_factor)[0].float()


def picture_of(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`latents_of`, for a batch, 0 to 1."""
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    return vae.decode(scaled.to(vae.dtype)).sample / 2 + 0.5


def _generate(pipeline: Any, parts: Parts, size: tuple[int, int], steps: int, guidance: float, seed: int) -> Tensor:
    tokens = sampled(
        pipeline,
        size,
        steps,
        seed,
        prompt_embeds=parts["prompt_embeds"][None],
        pooled_prompt_embeds=parts["pooled"][None],
        guidance_scale=guidance,
    )
    return unpack_latent(tokens, token_grid(*size, TOKEN_PIXELS))[0].float()


def _chroma_generate(
    pipeline: Any, parts: Parts, size: tuple[int, int], steps: int, guidance: float, seed: int
) -> Tensor:
    embeds, negative = parts["prompt_embeds"][None], parts["negative_embeds"][None]
    tokens = sampled(
        pipeline,
        size,
        steps,
        seed,
        prompt_embeds=embeds,
        prompt_attention_mask=torch.ones(embeds.shape[:2], device=embeds.device, dtype=torch.bool),
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=torch.ones(negative.shape[:2], device=embeds.device, dtype=torch.bool),
        guidance_scale=guidance,
    )
    return unpack_latent(tokens, token_grid(*size, TOKEN_PIXELS))[0].float()


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {"latents": config["in_channels"] // TOKEN_CELLS, "prompt_embeds": config["joint_attention_dim"]}


FLUX1_TEACHING = Teaching(
    family=FLUX1,
    pipeline="FluxPipeline",
    call=_call,
    text_of=_text_of,
    latents_of=latents_of,
    picture_of=picture_of,
    generate=_generate,
    widths=lambda config: _widths(config) | {"pooled": config["pooled_projection_dim"]},
)

CHROMA_TEACHING = Teaching(
    family=CHROMA,
    pipeline="ChromaPipeline",
    call=_chroma_call,
    text_of=_chroma_text_of,
    latents_of=latents_of,
    picture_of=picture_of,
    generate=_chroma_generate,
    widths=_widths,
    guidance=5.0,
    two_calls=True,
    masks=True,
    checkpointing=False,
)
