"""Qwen-Image: 2 x 2 cells of 16 channels are a token, and the model is told the shape of its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...families import QWEN_IMAGE
from ...integrations.flux_denoiser import pack_latent, unpack_latent
from ...layout import TOKEN_PIXELS, token_grid
from .base import Parts, Teaching, Text, full, sampled, seeded


def _call(model: Any, noisy: Tensor, sigma: Tensor, text: Text, guidance: float | None) -> Tensor:
    grid = token_grid(*noisy.shape[2:])
    tokens = model(
        hidden_states=pack_latent(noisy),
        encoder_hidden_states=text.embeds,
        encoder_hidden_states_mask=text.mask,
        timestep=sigma,
        img_shapes=[[(1, *grid)]] * noisy.shape[0],
        guidance=full(sigma, guidance),
        return_dict=False,
    )[0]
    return unpack_latent(tokens, grid)


def _text_of(pipeline: Any, caption: str) -> Parts:
    embeds, _ = pipeline.encode_prompt(prompt=caption)
    negative, _ = pipeline.encode_prompt(prompt=" ")  # As the pipeline's own page has it.
    return {"prompt_embeds": embeds[0], "negative_embeds": negative[0]}


def _latents_of(pipeline: Any, picture: Tensor, seed: int) -> Tensor:
    vae = pipeline.vae
    drawn = vae.encode(picture.to(vae.device, vae.dtype).unsqueeze(2)).latent_dist.sample(seeded(seed))
    mean, spread = _statistics(vae, drawn.device)
    return ((drawn.float() - mean) / spread)[0, :, 0]


def _picture_of(vae: Any, latents: Tensor) -> Tensor:
    mean, spread = _statistics(vae, latents.device)
    drawn = latents.float().unsqueeze(2) * spread + mean
    return vae.decode(drawn.to(vae.dtype)).sample[:, :, 0] / 2 + 0.5


def _statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel, (1, C, 1, 1, 1)."""
    values = vae.config.latents_mean, vae.config.latents_std
    mean, spread = (torch.tensor(each, device=device).view(1, -1, 1, 1, 1) for each in values)
    return mean, spread


def _generate(pipeline: Any, parts: Parts, size: tuple[int, int], steps: int, guidance: float, seed: int) -> Tensor:
    tokens = sampled(
        pipeline,
        size,
        steps,
        seed,
        prompt_embeds=parts["prompt_embeds"][None],
        prompt_embeds_mask=torch.ones(1, len(parts["prompt_embeds"]), dtype=torch.long),
        negative_prompt_embeds=parts["negative_embeds"][None],
        negative_prompt_embeds_mask=torch.ones(1, len(parts["negative_embeds"]), dtype=torch.long),
        true_cfg_scale=guidance,
    )
    return unpack_latent(tokens, token_grid(*size, TOKEN_PIXELS))[0].float()


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {"latents": config["in_channels"] // 4, "prompt_embeds": config["joint_attention_dim"]}


QWEN_TEACHING = Teaching(
    family=QWEN_IMAGE,
    pipeline="QwenImagePipeline",
    call=_call,
    text_of=_text_of,
    latents_of=_latents_of,
    picture_of=_picture_of,
    generate=_generate,
    widths=_widths,
    guidance=4.0,
    two_calls=True,
    masks=True,
)
