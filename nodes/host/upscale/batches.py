"""Pictures, masks and prompts of any batch and form as one run needs them, checked before any work.

Source: ``comfy.utils.repeat_to_batch_size``, the host's rule for batches of different lengths, and
``comfy.samplers.get_area_and_mult``, which knows it for the tensors of a prompt but not for its mask; in ComfyUI 0.9.0
and later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.utils
from torch import Tensor

from ....clear_core.sdedit import as_mask, as_picture, check_finite
from .prompts import tensors_of
from .stage import StageInputs

HIDING = "attention_mask"
"""Input of a prompt in which minus infinity has a meaning: a token that is not seen."""


def checked(image: Tensor, inputs: StageInputs) -> tuple[Tensor, StageInputs]:
    """A picture (B, H, W, 3) and the sockets of its run: B or one of each mask.

    Args:
        image: (B, H, W, C) in 0 to 1, of any number of channels.
        inputs: The sockets as the host gives them.

    Raises:
        ValueError: One of them is empty, has another shape, or has NaN; the sentence names it.
    """
    image = as_picture(image)
    check_finite(image, "image")
    return fitted(image, inputs)


def fitted(image: Tensor, inputs: StageInputs) -> tuple[Tensor, StageInputs]:
    """As :func:`checked`, for a picture that an earlier stage may have made."""
    image = as_picture(image)
    batch = image.shape[0]
    if not inputs.positive:
        raise ValueError("positive holds no prompt; connect one, such as CLIP Text Encode gives.")
    return image, replace(
        inputs,
        positive=fitted_prompts(inputs.positive, "positive", batch),
        negative=inputs.negative and fitted_prompts(inputs.negative, "negative", batch),
        mask=None if inputs.mask is None else in_batch(as_mask(inputs.mask), batch),
    )


def in_batch(mask: Tensor, batch: int) -> Tensor:
    """One mask for each picture, or one for all."""
    return mask if mask.shape[0] == 1 else comfy.utils.repeat_to_batch_size(mask, batch)


def fitted_prompts(prompts: list[Any], name: str, batch: int) -> list[Any]:
    """The host's conditioning with masks for ``batch`` pictures.

    Raises:
        ValueError: A tensor is an empty batch or has NaN.
    """
    return [fitted_prompt(prompt, name, batch) for prompt in prompts]


def fitted_prompt(prompt: Any, name: str, batch: int) -> Any:
    """One entry of a conditioning, (text, extras); see :func:`fitted_prompts`."""
    for part, tensor in tensors_of(prompt):
        described = f"{name} ({part})"
        if 0 in tensor.shape[:1]:
            raise ValueError(
                f"{described} is an empty batch of the shape {tuple(tensor.shape)}; expected at least one: look at the "
                "node that made it."
            )
        if tensor.numel() and tensor.is_floating_point() and part != HIDING:
            check_finite(tensor, described)
    text, extras, *rest = prompt
    mask = extras.get("mask")
    if not isinstance(mask, Tensor):
        return prompt
    mask = as_mask(mask, f"{name} (mask)")
    if mask.shape[0] < batch:  # The host itself takes the first ones of too many.
        mask = in_batch(mask, batch)
    return [text, {**extras, "mask": mask}, *rest]
