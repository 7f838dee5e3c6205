"""The record of the laboratory of distillation: errors before and after, by model, window and what is trained."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from clear_core import token_grid
from clear_core.layout import TOKEN_PIXELS

from .distil_models import teacher_record
from .distil_plans import SUBJECTS, Method, Subject
from .distil_run import Folder, Row

PACKAGES = ("diffusers", "accelerate", "torchao", "bitsandbytes")


def make_record(folder: Folder) -> dict[str, Any]:
    """The figures of a folder that holds all of them."""
    extent = folder.extent
    return {
        "torch": torch.__version__,
        **{name: version(name) for name in PACKAGES},
        "device": "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "scenes": extent.judged,
        "trial_scenes": extent.compared,
        "samples": extent.samples,
        "steps": extent.steps,
        "trial_steps": extent.trial_steps,
        "small_flux2": teacher_record(folder.path, extent),
        "subjects": [subject_record(folder, subject) for subject in SUBJECTS],
    }


def subject_record(folder: Folder, subject: Subject) -> Row:
    side = folder.extent.side_of(subject)
    return {
        "subject": subject.title,
        "side": side,
        "grid": list(token_grid(side, side, TOKEN_PIXELS)),
        "batch": folder.extent.batch_of(subject),
        "guidance": subject.guidance,
        "trials": [trial_record(folder, subject, method) for method in subject.methods if method.rates],
        "rows": [row_record(folder, subject, radius, method) for radius in subject.radii for method in subject.methods],
    }


def trial_record(folder: Folder, subject: Subject, method: Method) -> Row:
    """Mean errors of the short trials by rate."""
    found = folder.trials(subject, method)
    return {
        "method": method.name,
        "radius": subject.trial_radius,
        "means": {f"{rate:g}": mean for rate, mean in found.items()},
        "taken": folder.rate(subject, method),
    }


def row_record(folder: Folder, subject: Subject, radius: int, method: Method) -> Row:
    """Errors before and after a distillation."""
    before = folder.before(subject, radius, method.base)
    after = folder.distilled(subject, radius, method)
    return {
        "method": method.name,
        "radius": radius,
        "rate": after["rate"],
        "trained": after["trained"],
        "before": before["mse"],
        "after": after["mse"],
        "mean_before": before["mean"],
        "mean_after": after["mean"],
    }
