"""Objects of other nodes, told from the host's core, from plain values and from our own."""

from __future__ import annotations

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
