"""comfy-kitchen, whose ``sol_attn`` is the host's sparse attention. It is no requirement of the project."""

from __future__ import annotations

import importlib
from typing import Any

NAME = "comfy-kitchen"


def kitchen() -> Any:
    """The module.

    Raises:
        ValueError: It is not installed, or an older version without ``sol_attn``.
    """
    try:
        module = importlib.import_module("comfy_kitchen")
    except ImportError as error:
        raise ValueError(
            f"comfy_kitchen cannot be imported ({error}); install {NAME} 0.2.33 or later without its requirements (pip "
            f"install --no-deps {NAME}), since the host's sparse attention is computed by it."
        ) from None
    if not hasattr(module, "sol_attn"):
        raise ValueError(f"the installed {NAME} has no sol_attn; expected 0.2.33 or later: update it.")
    return module


def kitchen_version() -> str:
    """Of the installed package."""
    from importlib.metadata import version

    return version(NAME)
