"""CLEAR's weights as patches on the model, through the host's own table of names.

Source: ``comfy.utils.flux_to_diffusers``, ``ModelPatcher.add_patches`` and ``comfy.lora.calculate_weight``, in
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.families import ModelShape
from ....clear_core.weights import ClearFile

Entry = tuple[Any, ...]
"""One patch of a weight as the host keeps it: (strength, patch, strength of the weight, ...)."""


def trained_tensors(file: ClearFile) -> Mapping[str, Tensor]:
    """The file's tensors by diffusers name: memory-mapped, checked, and shared by all models with this file.

    Raises:
        ValueError: The file is damaged, or holds NaN.
    """
    stat = os.stat(file.path)
    key = (str(file.path), stat.st_mtime_ns, stat.st_size)
    tensors = _open.get(key)
    if tensors is None:
        file.check_finite()
        tensors = SharedTensors(file.tensors())
        _open[key] = tensors
    return tensors


class SharedTensors(dict[str, Tensor]):
    """A dict that can be referred to weakly."""

    __slots__ = ("__weakref__",)


# Nodes run many times; one mapping of the file serves all models as long as one of them exists.
_open: WeakValueDictionary[tuple[str, int, int], SharedTensors] = WeakValueDictionary()


def add_weight_patches(
    model: ModelPatcher, file: ClearFile, tensors: Mapping[str, Tensor], shape: ModelShape, strength: float
) -> dict[str, list[Entry]]:
    """Patch the trained slices into a clone's weights.

    A file of trained weights replaces: ``(1 - strength) * base + strength * file``. A delta file adds:
    ``base + strength * file``. Our patches precede all that add: a LoRA adds to the trained weights, before or after
    our node in the graph. They follow the last one that scales or sets: a merge does not weaken them. (A LoRA inside a
    merge is part of the base; trained weights replace it, a delta keeps it.)

    Args:
        tensors: The file's, from :func:`trained_tensors`.
        strength: 0 to 1.

    Returns:
        The added entries, by key of ``model.patches``.

    Raises:
        ValueError: The file does not fit the model.
    """
    file.fits(shape.width, shape.num_double, shape.num_single)
    table = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")
    patches = {table[name]: ("diff", (tensor,)) for name, tensor in tensors.items()}
    keys = {target if isinstance(target, str) else target[0] for target in patches}
    before = {key: len(model.patches.get(key, ())) for key in keys}
    base_strength = 1.0 if file.kind == "delta" else 1.0 - strength
    unknown = set(patches) - set(model.add_patches(patches, strength, base_strength))
    if unknown:
        raise ValueError(
            f"{file.name} has {len(unknown)} weights that this model lacks, among them "
            f"{sorted(map(str, unknown))[0]}; choose weights for this model."
        )
    added = {}
    for key in keys:
        entries = model.patches[key]
        added[key], earlier = entries[before[key] :], entries[: before[key]]
        start = 1 + max((index for index, entry in enumerate(earlier) if not only_adds(entry)), default=-1)
        model.patches[key] = [*earlier[:start], *added[key], *earlier[start:]]
    return added


def only_adds(entry: Entry) -> bool:
    """Whether a patch keeps the weight and adds to it. LoRAs that scale (DoRA, OFT) count as adding."""
    _, patch, base_strength, *_ = entry
    return base_strength == 1.0 and not (isinstance(patch, tuple) and patch[0] == "set")


def remove_weight_patches(model: ModelPatcher, added: dict[str, list[Entry]]) -> None:
    """Remove from a clone the entries that :func:`add_weight_patches` added, and nothing else."""
    for key, ours in added.items():
        ids = {id(entry) for entry in ours}
        kept = [entry for entry in model.patches.get(key, ()) if id(entry) not in ids]
        if kept:
            model.patches[key] = kept
        else:
            model.patches.pop(key, None)
    if added:
        model.patches_uuid = uuid.uuid4()
