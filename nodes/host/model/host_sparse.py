"""Detects the host's own sparse attention on the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RULE = (
    "ComfyUI's sparse attention is on the same model: the window is used, and the sparse attention only in the blocks "
    "and steps that have no window."
)


def is_host_sparse(override: Callable[..., Any] | None) -> bool:
    """Whether an attention override is that of Model Sparse Attention (the node BlockSparseAttention), which
    installs it anew at every step.

    Source: ``comfy_extras/nodes_sparse_attention.py``, ComfyUI 0.36 and later; the loader names the
    module by its path. That node acts before the model is called, so an APPLY_MODEL wrapper can still replace its
    override.
    """
    return getattr(override, "__module__", None) is not None and override.__module__.endswith("nodes_sparse_attention")
