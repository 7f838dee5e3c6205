"""FLUX.2: a token is one cell of 128 channels, normalised by the VAE's statistics; ids have four axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...families import FLUX2
from ...integrations.frame import grid_ids
from .base import Parts, Teaching, Text, full, sampled, seeded


def _call(model: Any, noisy: Tensor, sigma: Tensor, text: Text, guidance: float | None) -> Tensor:
    grid, batch = (noisy.shape[2], noisy.shape[3]), noisy.shape[0]
    # Picture, row, column, word: text counts along the last axis.
    image_ids = torch.nn.functional.pad(grid_ids(grid), (0, 1)).to(noisy.device)
    text_ids = torch.nn.functional.pad(torch.arange(text.embeds.shape[1])[:, None], (3, 0)).to(noisy.device)
    tokens = model(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        encoder_hidden_states=text.embeds,
        timestep=sigma,
        img_ids=image_ids.expand(batch, -1, -1),
        txt_ids=text_ids.to(image_ids.dtype).expand(batch, -1, -1),
        guidance=full(sigma, guidance),
        return_dict=False,
    )[0]
    return tokens.transpose(1, 2).unflatten(2, grid)


def _text_of(pipeline: Any, caption: str) -> Parts:
    embeds, _ = pipeline.encode_prompt(prompt=caption)
    return {"prompt_embeds": embeds[0]}


def _latents_of(pipeline: Any, picture: Tensor, seed: int) -> Tensor:
    vae = pipeline.vae
    drawn = vae.encode(picture.to(vae.device, vae.dtype)).latent_dist.sample(seeded(seed))
    # 2 x 2 cells become one of four times the channels: channel, row, column.
    mean, spread = _statistics(vae)
    return ((torch.nn.functional.pixel_unshuffle(drawn.float(), 2) - mean) / spread)[0]


def _picture_of(vae: Any, latents: Tensor) -> Tensor:
    mean, spread = _statistics(vae)
    drawn = torch.nn.functional.pixel_shuffle(latents.float() * spread + mean, 2)
    return vae.decode(drawn.to(vae.dtype)).sample / 2 + 0.5


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel of a token, (1, C, 1, 1)."""
    mean = vae.bn.running_mean.float()[None, :, None, None]
    return mean, (vae.bn.running_var.float()[None, :, None, None] + vae.config.batch_norm_eps).sqrt()


def _generate(pipeline: Any, parts: Parts, size: tuple[int, int], steps: int, guidance: float, seed: int) -> Tensor:
    # The pipeline's own "latent" is the VAE's, after its statistics; the model's is asked of it on the last step.
    kept: list[Tensor] = []

    def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept[:] = [tensors["latents"]]
        return tensors

    sampled(
        pipeline,
        size,
        steps,
        seed,
        prompt_embeds=parts["prompt_embeds"][None],
        guidance_scale=guidance,
        callback_on_step_end=keep,
    )
    pixels = FLUX2.token_pixels
    return kept[0].transpose(1, 2).unflatten(2, (size[0] // pixels, size[1] // pixels))[0].float()


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {"latents": config["in_channels"], "prompt_embeds": config["joint_attention_dim"]}


FLUX2_TEACHING = Teaching(
    family=FLUX2,
    pipeline="Flux2Pipeline",
    call=_call,
    text_of=_text_of,
    latents_of=_latents_of,
    picture_of=_picture_of,
    generate=_generate,
    widths=_widths,
    even=False,
)
