"""Notices a delta that the model carries already: saved after CLEAR Attention, or loaded as a LoRA before it.

Source: ``ModelPatcher.get_key_patches``, ``comfy.lora.calculate_weight``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.weights import ClearFile
from ....clear_core.weights.overlap import CARRIED, ROWS, compared_names, overlap
from .weight_names import PREFIX, places_of


def carried_remarks(model: ModelPatcher, file: ClearFile) -> tuple[str, ...]:
    """A sentence if a delta is about to be added to a model that carries it; none otherwise.

    Args:
        model: With all its patches but those of the delta.
    """
    share = carried_share(model, file)
    if share is None or share < CARRIED:
        return ()
    return (
        f"{file.name} is added to a model that carries about {100 * share:.0f} % of it already, as one does that was "
        "saved after CLEAR Attention; load the model without it, or set weights_name to none.",
    )


def carried_share(model: ModelPatcher, file: ClearFile) -> float | None:
    """How much of a delta the model's weights hold; None if its header or a quantised model does not tell."""
    if file.overlap is None:
        return None
    tensors = file.tensors()
    table = places_of(model, compared_names(tensors))
    patches = model.get_key_patches(PREFIX)

    def weight(name: str) -> Tensor:
        where = table[name]
        key, (axis, start, length) = (where, (0, 0, None)) if isinstance(where, str) else where
        (stored, convert), *entries = patches[key]
        plain = convert(stored.detach().to("cpu", torch.float32, copy=True), inplace=True)
        patched = comfy.lora.calculate_weight(entries, plain, key)
        return patched if length is None else patched.narrow(axis, start, length)

    keys = [place if isinstance(place, str) else place[0] for place in table.values()]
    if not keys or not all(is_plain(patches[key][0][0]) for key in keys):
        return None
    found = overlap(
        rows for name in table for rows in zip(weight(name).split(ROWS), tensors[name].split(ROWS), strict=True)
    )
    return None if found is None else found - file.overlap


def is_plain(weight: Tensor) -> bool:
    """Whether a weight holds its own values: neither quantised, nor scaled, nor left on disk."""
    ordinary = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.device.type != "meta"
    return ordinary and weight.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
