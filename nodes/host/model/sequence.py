"""The sequence that a prompt makes with an image, before a call and in it.

Source: ``comfy.sampler_helpers.convert_cond``, which puts the text of a prompt beside its extras, and
``comfy.model_base.Flux.extra_conds``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.layout import SequenceLayout, token_grid
from ....clear_core.memory import FLUX_TEXT
from .family import model_shape

Cond = dict[str, Any]
"""A prompt as samplers have it: its extras, with the text as ``cross_attn``."""


def sampler_conds(conditioning: Iterable[Any]) -> list[Cond]:
    """The prompts of a node's conditioning, (text, extras) each, in the samplers' form."""
    return [{**extras, "cross_attn": text} for text, extras in conditioning]


def sequence_of(model: ModelPatcher, cond: Cond, grid: tuple[int, int]) -> SequenceLayout:
    """The sequence that a prompt makes with an image, or a tile, of this grid: references are not cropped to a tile."""
    text = cond.get("cross_attn")
    references = cond.get("reference_latents") if model_shape(model).family.takes_references else None
    return SequenceLayout(
        text.shape[1] if isinstance(text, Tensor) else FLUX_TEXT,
        grid,
        sum(image_tokens(latent.shape) for latent in references or ()),
    )


def sequence_tokens(x: Tensor, text: Tensor | None, extra: dict[str, Any]) -> int:
    """Tokens of one call's sequence; 0 if the latent is no image.

    Args:
        x: Latent, (B, C, H, W) for an image.
        text: (B, T, width) or None.
        extra: The call's other arguments; ``ref_latents`` count.
    """
    if x.ndim != 4:
        return 0
    latents = [x, *(extra.get("ref_latents") or ())]
    return sum(image_tokens(latent.shape) for latent in latents) + (0 if text is None else text.shape[1])


def image_tokens(shape: Any) -> int:
    """Tokens of a latent (B, C, H, W)."""
    height, width = token_grid(*shape[-2:])
    return height * width
