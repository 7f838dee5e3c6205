"""SD3 and SD3.5: the model takes the latent itself, and noise levels from 0 to 1000."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...families import SD3
from .base import Parts, Teaching, Text, sampled
from .flux1 import latents_of, picture_of

TIMESTEPS = 1000.0
"""Where the noise level 1 is."""


def _call(model: Any, noisy: Tensor, sigma: Tensor, text: Text, _guidance: float | None) -> Tensor:
    return model(
        hidden_states=noisy,
        encoder_hidden_states=text.embeds,
        pooled_projections=text.pooled,
        timestep=sigma * TIMESTEPS,
        return_dict=False,
    )[0]


def _text_of(pipeline: Any, caption: str) -> Parts:
    embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(
        prompt=caption, prompt_2=None, prompt_3=None, negative_prompt=""
    )
    return {
        "prompt_embeds": embeds[0],
        "pooled": pooled[0],
        "negative_embeds": negative[0],
        "negative_pooled": negative_pooled[0],
    }


def _generate(pipeline: Any, parts: Parts, size: tuple[int, int], steps: int, guidance: float, seed: int) -> Tensor:
    latents = sampled(
        pipeline,
        size,
        steps,
        seed,
        prompt_embeds=parts["prompt_embeds"][None],
        pooled_prompt_embeds=parts["pooled"][None],
        negative_prompt_embeds=parts["negative_embeds"][None],
        negative_pooled_prompt_embeds=parts["negative_pooled"][None],
        guidance_scale=guidance,
    )
    return latents[0].float()


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        "latents": config["in_channels"],
        "prompt_embeds": config["joint_attention_dim"],
        "pooled": config["pooled_projection_dim"],
    }


SD3_TEACHING = Teaching(
    family=SD3,
    pipeline="StableDiffusion3Pipeline",
    call=_call,
    text_of=_text_of,
    latents_of=latents_of,
    picture_of=picture_of,
    generate=_generate,
    widths=_widths,
    guidance=4.5,
    two_calls=True,
)
