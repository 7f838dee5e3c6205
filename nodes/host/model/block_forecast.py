"""Whether the blocks of a model will be computed in chunks, told before its first call.

Source: ``ModelPatcher.object_patches``, ``transformer_options["patches_replace"]["dit"]`` and the wrapper of
``comfy_api.torch_helpers.set_torch_compile_wrapper``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import nn

from .chunked_blocks import is_plain, own_forward
from .family import host_family

KEY = "clear_flux_memory"
"""Of the wrappers that compute blocks in chunks, methods of an object with a ``chunk``."""

COMPILED = "torch.compile"
"""Of the wrappers that put compiled modules in place for one call: the host's, and KJNodes'."""


def planned_chunk(model: ModelPatcher, cond: Mapping[str, Any]) -> int | None:
    """Fewest tokens that a block will work on at a time; None if some block will be computed as a whole.

    Args:
        model: A FLUX.1 or a relative.
        cond: A prompt as samplers have it.
    """
    patches = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    # The wrapper is a method of the patch.
    chunk: int | None = patches[-1].__self__.chunk if patches else None
    options = model.model_options.get("transformer_options", {})
    if chunk is None or not may_replace_blocks(options, cond.get("reference_latents_method")):
        return None
    if options.get("patches_replace", {}).get("dit"):
        return None
    return chunk if all(_is_left_plain(model, path) for path in _paths(model)) and _stays_plain(model) else None


def may_replace_blocks(options: Mapping[str, Any], reference_method: str | None) -> bool:
    """Whether the blocks of a call may be replaced: not if something patches the inside of the host's own."""
    patches = options.get("patches", {})
    return not (
        patches.get("attn1_patch") or patches.get("attn1_output_patch") or reference_method == "index_timestep_zero"
    )


def _paths(model: ModelPatcher) -> Iterator[str]:
    """The blocks' places in the base model."""
    for name in host_family(model).block_lists:
        for index in range(len(getattr(model.model.diffusion_model, name))):
            yield f"diffusion_model.{name}.{index}"


def _is_left_plain(model: ModelPatcher, path: str) -> bool:
    """Whether a block is the host's once the object patches are applied."""
    places = path.split(".")
    if any(".".join(places[:length]) in model.object_patches for length in range(1, len(places))):
        return False
    block, name = model.get_model_object(path), f"{path}.forward"
    # Another clone's patch may still be in place; the backup is what comes back.
    before = model.object_patches_backup.get(name, own_forward(block))
    return is_plain(block, model.object_patches.get(name, before))


def _stays_plain(model: ModelPatcher) -> bool:
    """Whether no block is a compiled module when our wrapper looks at it.

    Compiled modules are in their places only inside their wrapper, so each is asked with a call that does nothing else.
    """
    for key, wrappers in model.wrappers.get(WrappersMP.APPLY_MODEL, {}).items():
        if key == KEY:
            break  # What is put in place after our wrapper is not seen by it.
        if key == COMPILED and not all(wrapper(_Look(model)) for wrapper in wrappers):
            return False
    return True


class _Look:
    """Stands for the rest of a call: looks at the blocks, and returns whether all are the host's."""

    def __init__(self, model: ModelPatcher):
        self.paths = tuple(_paths(model))
        self.class_obj = model.model

    def __call__(self) -> bool:
        blocks: list[nn.Module] = [comfy.utils.get_attr(self.class_obj, path) for path in self.paths]
        return all(is_plain(block, own_forward(block)) for block in blocks)
