"""Why a model never asked for attention: another engine computes it.

Source: raylight's ``diffusion_models/flux/xdit_context_parallel.py``, which binds every block's ``forward`` anew.
"""

from __future__ import annotations

from typing import Any

RAYLIGHT = (
    "raylight computes this model's attention on several devices and passes on neither masks nor options, so the "
    "window is not applied; docs/parallel.md says how to use several devices with windows."
)
OTHER = "another node computes this model's attention by itself, so the window is not applied."


def bypassed_sentence(diffusion_model: Any) -> str:
    """Says who computes the attention of a model."""
    blocks = list(getattr(diffusion_model, "double_blocks", ()))
    is_raylight = any(block.forward.__module__.partition(".")[0] == "raylight" for block in blocks)
    return RAYLIGHT if is_raylight else OTHER
