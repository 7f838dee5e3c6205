"""The sequence that a prompt makes with an image, before a call and in it.

Source: ``comfy.sampler_helpers.convert_cond``, which puts the text of a prompt beside its extras, and
``comfy.model_base.Flux.extra_conds``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ....clear_core.layout import PATCH, SequenceLayout, token_grid
from ....clear_core.memory import FLUX_TEXT
from .picture_model import PictureModel

Cond = dict[str, Any]
"""A prompt as samplers have it: its extras, with the text as ``cross_attn``."""


def sampler_conds(conditioning: Iterable[Any]) -> list[Cond]:
    """The prompts of a node's conditioning, (text, extras) each, in the samplers' form."""
    return [{**extras, "cross_attn": text} for text, extras in conditioning]


def sequence_of(picture: PictureModel, cond: Cond, grid: tuple[int, int]) -> SequenceLayout:
    """The sequence that a prompt makes with an image, or a tile, of (rows, columns) of tokens.

    References are not cropped to a tile.
    """
    text = cond.get("cross_attn")
    references = cond.get("reference_latents") if picture.takes_references else None
    patch = picture.units.token_cells
    return SequenceLayout(
        max(text.shape[1], picture.least_text) if isinstance(text, Tensor) else FLUX_TEXT,
        grid,
        sum(image_tokens(latent.shape, patch) for latent in references or ()),
    )


def sequence_tokens(x: Tensor, text: Tensor | None, extra: dict[str, Any], patch: int = PATCH) -> int:
    """Tokens of one call's sequence; 0 if the latent is no image.

    Args:
        x: Latent, (B, C, H, W) or (B, C, 1, H, W) for an image.
        text: (B, T, width) or None.
        extra: The call's other arguments; ``ref_latents`` count.
        patch: Side of a token in latent cells.
    """
    if not is_image(x.shape):
        return 0
    latents = [x, *(extra.get("ref_latents") or ())]
    return sum(image_tokens(latent.shape, patch) for latent in latents) + (0 if text is None else text.shape[1])


def is_image(shape: Any) -> bool:
    """Whether a latent of this shape is of single pictures: (B, C, H, W), or (B, C, 1, H, W)."""
    return len(shape) == 4 or (len(shape) == 5 and shape[2] == 1)


def image_tokens(shape: Any, patch: int = PATCH) -> int:
    """Tokens of a latent (..., H, W) of single pictures."""
    height, width = shape[-2:]
    return math.prod(token_grid(height, width, patch))
