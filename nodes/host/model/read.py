"""Reads from a model in the host what CLEAR did to it and how it attends."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....clear_core.attention import explain_backend
from ....clear_core.effective import Effective
from ....clear_core.inspection.facts import WeightsFacts
from ....clear_core.layout import SequenceLayout
from ....clear_core.weights import fingerprint
from .apply import KEY
from .family import model_shape
from .window_patch import WindowPatch

HASH_NOTICE_BYTES = 100_000_000
"""Larger files get a progress bar while their fingerprint is computed."""


def clear_of(model: ModelPatcher) -> WindowPatch | None:
    """CLEAR's part of a model, or None."""
    patches = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return patches[-1] if patches else None


def has_windows(model: ModelPatcher) -> bool:
    """Whether a CLEARAttention precedes; where its windows are inactive, :class:`Effective` says why."""
    return clear_of(model) is not None


def effective_of(model: ModelPatcher, layout: SequenceLayout, frame: tuple[int, int] | None = None) -> Effective:
    """What a model's settings come to for a sequence, which may be a tile of a frame of (h, w) tokens.

    Raises:
        ValueError: CLEAR does not work on the model.
    """
    patch = clear_of(model)
    return Effective.of(patch.settings if patch else None, model_shape(model), layout, frame)


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The dtype that the model computes in."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def backend_of(model: ModelPatcher, effective: Effective) -> tuple[str, str]:
    """The backend that computes the windows of a call, and one sentence why."""
    if not effective.active:
        return "dense", "It is the model's own attention, as there are no windows."
    case = (model.load_device, compute_dtype(model), effective.shape.head_dim)
    grid = effective.layout.grid
    return explain_backend(*case, grid, effective.spec.within(grid), effective.backend)


def weights_of(patch: WindowPatch | None) -> WeightsFacts | None:
    """The distilled weights of a model. A large file is read once, with a progress bar."""
    if patch is None or patch.file is None:
        return None
    file = patch.file
    report = progress_report(file.size) if file.size > HASH_NOTICE_BYTES else None
    return WeightsFacts(file.name, patch.strength, fingerprint(file.path, report), patch.remarks)


def progress_report(size: int) -> Callable[[int, int], None]:
    """A callback (done, total) for a read of ``size`` bytes: moves a progress bar, and stops when the user cancels."""
    bar = comfy.utils.ProgressBar(size)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report
