"""The host's own sparse attention on the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RULE = (
    "ComfyUI's sparse attention is on the same model: the window is used, and the sparse attention only in the blocks "
    "and steps that have no window."
)


def is_host_sparse(override: Callable[..., Any] | None) -> bool:
    """Whether an attention override is that of Block Sparse Attention, which puts it on top anew at every step.

    Source: ``comfy_extras/nodes_sparse_attention.py``, ComfyUI 0.36 and later; the loader gives the module its path as
    its name. That node works before the model is called, so what is set in an APPLY_MODEL wrapper comes after it.
    """
    return getattr(override, "__module__", None) is not None and override.__module__.endswith("nodes_sparse_attention")
