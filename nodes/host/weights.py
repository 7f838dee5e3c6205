"""CLEAR's weights as patches on the model, through the host's own table of names.

Source: ``comfy.utils.flux_to_diffusers``, ``ModelPatcher.add_patches`` and ``comfy.lora.calculate_weight``.
"""

from __future__ import annotations

import uuid

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...clear_core.weights import ClearFile
from .flux import FluxShape


def add_weight_patches(model: ModelPatcher, file: ClearFile, shape: FluxShape,
                       strength: float = 1.0) -> dict[str, list[tuple]]:
    """Replace the trained slices of a clone's weights: ``(1 - strength) * base + strength * file``.

    The patches go in front of all others, so that a LoRA adds to the trained weights wherever its node stands.

    Returns:
        The entries that were added, by key of ``model.patches``.

    Raises:
        ValueError: The file does not fit the model; nothing was patched.
    """
    file.fits(shape.width, shape.num_double, shape.num_single)
    table = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")
    patches = {table[name]: ("diff", (tensor,)) for name, tensor in file.tensors().items()}
    keys = {target if isinstance(target, str) else target[0] for target in patches}
    before = {key: len(model.patches.get(key, ())) for key in keys}
    unknown = set(patches) - set(model.add_patches(patches, strength, 1.0 - strength))
    if unknown:
        raise ValueError(f"{file.name} has {len(unknown)} weights that this model lacks, among them "
                         f"{sorted(map(str, unknown))[0]}; choose weights for this model.")
    added = {}
    for key in keys:
        entries = model.patches[key]
        added[key] = entries[before[key]:]
        model.patches[key] = added[key] + entries[: before[key]]
    return added


def remove_weight_patches(model: ModelPatcher, added: dict[str, list[tuple]]) -> None:
    """Take out of a clone what :func:`add_weight_patches` put in, and nothing else."""
    for key, ours in added.items():
        ids = {id(entry) for entry in ours}
        kept = [entry for entry in model.patches.get(key, ()) if id(entry) not in ids]
        if kept:
            model.patches[key] = kept
        else:
            model.patches.pop(key, None)
    if added:
        model.patches_uuid = uuid.uuid4()
