"""Changes to a model by other nodes, in plain sentences.

Source: ``comfy.model_patcher.ModelPatcher`` and ``comfy.patcher_extension``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..model.apply import KEY
from ..model.attention_override import OVERRIDE
from ..model.rope_embedder import PositionEmbedder
from ..model.window_patch import WindowPatch

# Functions that packs put beside the model, by the host's names.
OPTIONS = {
    "model_function_wrapper": "every call of the model is wrapped",
    "sampler_cfg_function": "classifier-free guidance is replaced",
    "sampler_pre_cfg_function": "something is done before classifier-free guidance",
    "sampler_post_cfg_function": "something is done after classifier-free guidance",
    "sampler_calc_cond_batch_function": "the batching of prompts is replaced",
    "denoise_mask_function": "the mask changes while sampling (differential diffusion)",
}


def other_patches(model: ModelPatcher, ours: WindowPatch | None) -> tuple[str, ...]:
    """One sentence for each kind of change that is not CLEAR's."""
    found = [
        *weight_sentences(model, ours),
        *option_sentences(model),
        *object_sentences(model),
        *wrapper_sentences(model),
    ]
    if type(model) is not ModelPatcher and type(model).__module__.split(".")[0] != "comfy":
        found.append(f"the model's weights are in the hands of {name_of(type(model))}")
    return tuple(found)


def weight_sentences(model: ModelPatcher, ours: WindowPatch | None) -> list[str]:
    """LoRAs and other additions to weights."""
    mine = {id(entry) for entries in (ours.weight_patches if ours else {}).values() for entry in entries}
    layers, keys = Counter(), set()
    for key, entries in model.patches.items():
        for entry in entries:
            if id(entry) not in mine:
                # A LoRA puts one entry on each part of a fused weight.
                layers[key, str(entry[3:4])] += 1
                keys.add(key)
    said = []
    if layers:
        count = max(layers.values())
        said.append(
            f"{count} LoRA{'s' if count > 1 else ''} or other weight patch{'es' if count > 1 else ''}, "
            f"on {len(keys)} weights"
        )
    if model.hook_patches:
        said.append(
            f"{len(model.hook_patches)} hook{'s' if len(model.hook_patches) > 1 else ''} that change the "
            "weights while sampling (LoRA schedules)"
        )
    return said


def option_sentences(model: ModelPatcher) -> list[str]:
    """The attention override, block patches and sampler functions."""
    options = model.model_options.get("transformer_options", {})
    said = []
    if OVERRIDE in options:
        said.append(
            f"another attention function is set ({name_of(options[OVERRIDE])}); it runs where the window does not"
        )
    for name, functions in sorted(options.get("patches", {}).items()):
        said.append(f"{name}: {names_of(functions)}")
    for name, blocks in sorted(options.get("patches_replace", {}).items()):
        said.append(f"{len(blocks)} blocks are replaced ({name}): {names_of(blocks.values())}")
    for name, words in OPTIONS.items():
        if value := model.model_options.get(name):
            said.append(f"{words}: {names_of(value if isinstance(value, list) else [value])}")
    return said


def object_sentences(model: ModelPatcher) -> list[str]:
    """Replaced parts of the model."""
    said = []
    for key, value in sorted(model.object_patches.items()):
        if isinstance(value, PositionEmbedder):
            continue
        if key == "model_sampling":
            shift = getattr(value, "shift", None)
            said.append(
                f"the noise schedule is set ({type(value).__name__}"
                + (f", shift {float(shift):g})" if shift is not None else ")")
            )
        else:
            said.append(f"{key} is exchanged: {name_of(value)}")
    return said


def wrapper_sentences(model: ModelPatcher) -> list[str]:
    """Wrappers, callbacks and further models."""
    options = model.model_options.get("transformer_options", {})
    by_key: dict[str, list[Any]] = {}
    for table in (model.wrappers, options.get("wrappers", {}), model.callbacks, options.get("callbacks", {})):
        for keyed in table.values():
            for key, functions in keyed.items():
                if not str(key).startswith(KEY) and functions:
                    by_key.setdefault(str(key), []).extend(functions)
    said = [
        f'wraps the model as "{key}": {names_of(functions)}'
        if key != "None"
        else f"wraps the model: {names_of(functions)}"
        for key, functions in sorted(by_key.items())
    ]
    said += [f'injects code as "{key}"' for key in sorted(map(str, model.injections))]
    said += [
        f'holds {len(models)} further models as "{key}"'
        for key, models in sorted(model.additional_models.items())
        if models
    ]
    return said


def names_of(functions: Iterable[Any]) -> str:
    """The names of some functions, each once."""
    return ", ".join(dict.fromkeys(name_of(function) for function in functions)) or "nothing"


def name_of(thing: Any) -> str:
    """The name of a function or object and of its pack; never a path of this machine."""
    thing = getattr(thing, "func", thing)  # functools.partial
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    # Methods keep their class, closures lose the function they were made in.
    name = named.__qualname__.split("<locals>.")[-1]
    module = str(getattr(named, "__module__", ""))
    pack = re.search(r"custom_nodes[/\\.]([^/\\.]+)", module)
    if pack:
        return f"{name} of {pack[1]}"
    root = re.split(r"[/\\.]", module)[0]
    return f"{name} of ComfyUI" if root in ("comfy", "comfy_extras", "comfy_api", "nodes") else name
