"""CLEAR's weights as patches on the model, through the host's own tables of names.

Source: ``ModelPatcher.add_patches``, ``comfy.lora.calculate_weight`` and ``comfy.weight_adapter.LoRAAdapter``, in
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ....clear_core.families import ModelShape
from ....clear_core.weights import ClearFile
from .weight_names import places_of

Entry = tuple[Any, ...]
"""One patch of a weight as the host keeps it: (strength, patch, strength of the weight, ...)."""


Change = tuple[str, tuple[Any, ...]] | LoRAAdapter
"""What the host makes of one trained tensor: a tensor to add (``("diff", (tensor,))``), or two factors of low rank."""


def trained_changes(file: ClearFile) -> Mapping[str, Change]:
    """What the file holds, by canonical name: memory-mapped, checked, and shared by all models with this file.

    Factors of low rank stay two: the host multiplies them when it patches a weight.

    Raises:
        ValueError: The file is damaged, or holds NaN.
    """
    stat = os.stat(file.path)
    key = (str(file.path), stat.st_mtime_ns, stat.st_size)
    changes = _open.get(key)
    if changes is None:
        file.check_finite()
        factors, tensors = file.factors(), file.tensors()
        changes = SharedChanges(
            {name: low_rank(*factors[name]) if name in factors else ("diff", (tensors[name],)) for name in tensors}
        )
        _open[key] = changes
    return changes


def low_rank(down: Tensor, up: Tensor) -> LoRAAdapter:
    """The change ``up @ down`` of a weight, in the host's own form; neither alpha nor anything else scales it."""
    return LoRAAdapter(set[str](), (up, down, None, None, None, None))


class SharedChanges(dict[str, Change]):
    """A dict that can be referred to weakly."""

    __slots__ = ("__weakref__",)


# Nodes run many times; one mapping of the file serves all models as long as one of them exists.
_open: WeakValueDictionary[tuple[str, int, int], SharedChanges] = WeakValueDictionary()


def add_weight_patches(
    model: ModelPatcher, file: ClearFile, changes: Mapping[str, Change], shape: ModelShape, strength: float
) -> dict[str, list[Entry]]:
    """Patch the trained slices into a clone's weights.

    A file of trained weights replaces: ``(1 - strength) * base + strength * file``. A delta adds, in full or of low
    rank: ``base + strength * file``. Our patches precede all that add: a LoRA adds to the trained weights, before or
    after our node in the graph. They follow the last one that scales or sets: a merge does not weaken them. (A LoRA
    inside a merge is part of the base; trained weights replace it, a delta keeps it.)

    Args:
        changes: The file's, from :func:`trained_changes`.
        strength: 0 to 1.

    Returns:
        The added entries, by key of ``model.patches``; none at strength 0.

    Raises:
        ValueError: The file does not fit the model.
    """
    file.fits(shape.width, shape.num_double, shape.num_single, shape.family.name)
    places = places_of(model, changes)
    patches = {places.get(name, name): change for name, change in changes.items()}
    keys = {target if isinstance(target, str) else target[0] for target in patches}
    before = {key: len(model.patches.get(key, ())) for key in keys}
    base_strength = 1.0 if file.adds else 1.0 - strength
    unknown = set(patches) - set(model.add_patches(patches, strength, base_strength))
    if unknown:
        raise ValueError(
            f"{file.name} has {len(unknown)} weights that this model lacks, among them "
            f"{sorted(map(str, unknown))[0]}; choose weights for this model."
        )
    if strength == 0:
        # The host stores each patched layer again, which rounds a quantised one anew even for a patch of nothing.
        for key in keys:
            model.patches[key] = model.patches[key][: before[key]]
            if not before[key]:
                del model.patches[key]
        return {}
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
