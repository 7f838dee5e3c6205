"""Notices a delta that the model carries already: saved after CLEAR Attention, or loaded as a LoRA before it.

Source: ``comfy.model_patcher.get_key_weight``, ``ModelPatcher.backup`` and ``hook_backup``,
``comfy.lora.calculate_weight``, in ComfyUI 0.9.0 and later.

``ModelPatcher.get_key_patches`` would tell the same, but in 0.33.0 it fails on a model with quantised layers, of which
it takes the scales for weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor

from ....clear_core.weights import ClearFile
from ....clear_core.weights.overlap import CARRIED, ROWS, compared_names, overlap
from .weight_names import places_of


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
    if not table:
        return None

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for name, place in table.items():
            key, (axis, start, length) = (place, (0, 0, None)) if isinstance(place, str) else place
            patched = comfy.lora.calculate_weight(model.patches.get(key, []), plain_weight(model, key), key)
            rows = patched if length is None else patched.narrow(axis, start, length)
            yield from zip(rows.split(ROWS), tensors[name].split(ROWS), strict=True)

    try:
        found = overlap(pairs())
    except UnreadableError:
        return None
    return None if found is None else found - file.overlap


class UnreadableError(ValueError):
    """A weight does not tell its values."""


def plain_weight(model: ModelPatcher, key: str) -> Tensor:
    """A weight without the model's patches, in float32 on the CPU; a new tensor.

    Raises:
        UnreadableError: It is of 8 bits without a scale, of another library's quantisation, or left on disk.
    """
    stored, _, convert = get_key_weight(model.model, key)
    if key in model.hook_backup:
        stored = model.hook_backup[key][0]
    elif key in model.backup:
        stored = model.backup[key].weight
    # Layers that the host quantises know how to undo it.
    values = stored.detach() if convert is None else convert(stored.detach(), inplace=False)
    if not is_plain(values):
        raise UnreadableError(key)
    return values.to("cpu", torch.float32, copy=True)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight holds its own values: neither quantised, nor scaled, nor left on disk."""
    ordinary = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.device.type != "meta"
    return ordinary and weight.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
