"""What other nodes do within a call of the model: it may belong to the whole picture, or to one thread at a time.

Source: ``transformer_options`` in ``model_options``; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..crop.foreign_objects import called_in, is_foreign, is_shared
from ..model.block_forecast import COMPILED
from ..model.devices import Devices


def foreign_calls(model_options: dict[str, Any]) -> list[str]:
    """Names of other nodes' functions that the host calls within a call of the model.

    What surrounds a step or a call is left out, since it has the whole picture; so are attention overrides, which are
    given the queries and keys that they use.
    """
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    within = {
        "patches": options.get("patches"),
        "patches_replace": options.get("patches_replace"),
        "wrappers": {
            "diffusion_model": wrappers.get("diffusion_model"),
            # It puts the first device's compiled model in the place of every clone's.
            "apply_model": wrappers.get("apply_model", {}).get(COMPILED),
        },
    }
    return sorted({name_of(called) for called in called_in({"transformer_options": within}) if not is_known(called)})


def is_one_at_a_time(model_options: dict[str, Any]) -> bool:
    """Whether other nodes take part in a step, which may keep something from one call to the next."""
    held = model_options.get("transformer_options", {}).values()
    return any(map(is_foreign, held)) or not all(map(is_known, called_in(model_options)))


def unlike(devices: Devices) -> str | None:
    """Why the models on the devices do not compute the same, each with weights of its own, or None.

    Nodes that exchange methods or modules of a model (caches, a LoRA in bypass mode) know the first device's alone, and
    the host gives its object patches to all clones.
    """
    first, *others = ([*device.model.diffusion_model.modules()] for device in devices.each)
    for modules in (first, *others):
        for module in modules:
            for name, own in vars(module).items():
                if isinstance(own, FunctionType | MethodType) and _is_exchanged(module, name, own):
                    return f"another node has exchanged {name} of {type(module).__name__} in the model"
    for modules in others:
        if [*map(type, modules)] != [*map(type, first)]:
            return "another node has exchanged modules of the model on one device"
        for one, other in zip(first, modules, strict=True):
            if one is other and [*one.parameters(recurse=False), *one.buffers(recurse=False)]:
                return f"a {type(one).__name__} of another node has its weights on one device"
    return None


def _is_exchanged(module: nn.Module, name: str, own: Any) -> bool:
    """Whether a function stands for a method of the class; the host puts back the class's own after a patch."""
    method = getattr(type(module), name, None)
    is_back = getattr(own, "__func__", None) is method and getattr(own, "__self__", None) is module
    return method is not None and not is_back


def is_known(called: Any) -> bool:
    """Whether it is ours or of the host's core: a function, a method, or an object that is called."""
    owner = getattr(called, "__self__", None)
    return is_shared(_kind(called)) or (owner is not None and is_shared(type(owner)))


def name_of(called: Any) -> str:
    """A function's or an object's name and module."""
    kind = _kind(called)
    return f"{kind.__qualname__} of {kind.__module__}"


def _kind(called: Any) -> Any:
    while isinstance(called, partial):
        called = called.func
    return called if hasattr(called, "__qualname__") else type(called)
