"""Objects of other nodes, told from the host's core, from plain values and from our own."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

OURS = __name__.partition(".nodes.host.")[0]

SHARED = (f"{OURS}.", "comfy.", "torch.", "builtins.")
"""Modules whose objects are left alone: our own are made for tiles, the host's core keeps weights and memory."""


def is_foreign(value: Any) -> bool:
    """Whether it is an object of another node, with attributes of its own."""
    if isinstance(value, type | super | ModuleType | FunctionType | Tensor | nn.Module) or is_shared(type(value)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def is_shared(kind: Any) -> bool:
    """Whether a class or a function is of a module in :data:`SHARED`."""
    return f"{kind.__module__}.".startswith(SHARED)


def called_in(model_options: dict[str, Any]) -> Generator[Any]:
    """What other nodes have the host call in a step: the function around the model, wrappers and patches."""

    def leaves(value: Any) -> Generator[Any]:
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                yield from leaves(item)
        elif callable(value):
            yield value

    yield from leaves(model_options.get("model_function_wrapper"))
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    for kind in ("calc_cond_batch", "apply_model", "diffusion_model"):
        yield from leaves(wrappers.get(kind))
    for kind in ("patches", "patches_replace", "optimized_attention_override"):
        yield from leaves(options.get(kind))


def owner_of(called: Any) -> Any:
    """The object whose attributes a call may write to: of a method its own, else the callable itself."""
    while isinstance(called, partial):
        called = called.func
    return getattr(called, "__self__", called)
