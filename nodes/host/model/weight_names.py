"""The host's names of trained tensors, by their canonical (diffusers) names.

Source: ``comfy.utils.flux_to_diffusers`` and ``mmdit_to_diffusers``, as ``comfy.lora.model_lora_keys_unet`` uses them
for LoRAs in diffusers' names; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher

from .family import config_of, host_family

PREFIX = "diffusion_model."

Place = str | tuple[str, tuple[int, int, int]]
"""A key of the model's state dict, or that and (axis, start, length) of its part."""


def places_of(model: ModelPatcher, names: Collection[str]) -> dict[str, Place]:
    """Where the host keeps trained tensors; names that it does not know are left out.

    Args:
        names: Canonical ones.

    Raises:
        ValueError: CLEAR does not work on the model.
    """
    table = _TABLES.get(host_family(model).family.name, _flux)(config_of(model), names)
    return {name: table[name] for name in names if name in table}


def _flux(config: dict[str, Any], names: Collection[str]) -> Mapping[str, Place]:
    return comfy.utils.flux_to_diffusers(config, output_prefix=PREFIX)


def _sd3(config: dict[str, Any], names: Collection[str]) -> Mapping[str, Place]:
    return comfy.utils.mmdit_to_diffusers(config, output_prefix=PREFIX)


def _same(config: dict[str, Any], names: Collection[str]) -> Mapping[str, Place]:
    return {name: f"{PREFIX}{name}" for name in names}


_TABLES: Mapping[str, Callable[[dict[str, Any], Collection[str]], Mapping[str, Place]]] = {
    "SD3.5": _sd3,
    "Qwen-Image": _same,
}
