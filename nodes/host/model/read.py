"""Reads off a model in the host what CLEAR did to it and what its attention looks like."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....clear_core.attention import explain_backend
from ....clear_core.attention.choose import unavailable_reason
from ....clear_core.inspection.facts import WeightsFacts
from ....clear_core.weights import fingerprint
from .apply import KEY
from .attention_override import WindowPatch

HASH_NOTICE_BYTES = 100_000_000
"""Files above this get a progress bar while their fingerprint is taken."""


def clear_of(model: ModelPatcher) -> WindowPatch | None:
    """CLEAR's part of a model, or None."""
    patches = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return patches[-1] if patches else None


def has_windows(model: ModelPatcher) -> bool:
    """Whether CLEAR is on a model."""
    return clear_of(model) is not None


def head_dim_of(model: ModelPatcher) -> int:
    """Size of a head."""
    config = model.model.model_config.unet_config
    return config["hidden_size"] // config["num_heads"]


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What the model computes in."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def backend_of(model: ModelPatcher, patch: WindowPatch | None, grid: tuple[int, int]) -> tuple[str, str]:
    """What computes the windows of this grid, and one sentence why."""
    if patch is None:
        return "dense", "It is the model's own attention, as there are no windows."
    settings = patch.settings
    case = (model.load_device, compute_dtype(model), head_dim_of(model))
    if settings.backend == "auto":
        return explain_backend(*case, grid, settings.spec.within(grid))
    reason = unavailable_reason(settings.backend, *case)
    if reason:
        return settings.backend, f"It is set on CLEAR Attention, but cannot run here: {reason}."
    return settings.backend, "It is set on CLEAR Attention."


def weights_of(patch: WindowPatch | None) -> WeightsFacts | None:
    """The distilled weights of a model; a large file is read through once, with a bar."""
    if patch is None or patch.file is None:
        return None
    file = patch.file
    report = None
    if file.size > HASH_NOTICE_BYTES:
        bar = comfy.utils.ProgressBar(file.size)

        def report(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

    return WeightsFacts(file.name, patch.strength, fingerprint(file.path, report))
