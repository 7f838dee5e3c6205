"""A small FLUX.1 and random samples, whose locality is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clear_core import ClearSpec
from clear_core.distill.samples import SampleFolder
from clear_core.inspection.locality.__main__ import pictures_of
from clear_core.inspection.locality.measure import Subject
from clear_core.inspection.locality.settings import LocalitySettings

from .distillation import samples_for, teacher

WIDTHS = {"latents": 4, "prompt_embeds": 8, "pooled": 8}
SMALL = LocalitySettings(ClearSpec(1), levels=(0.3, 0.8), radii=(1, 2, 9), limits=(1, 3), queries=10, count=1)


def subject(folder: Path, settings: LocalitySettings = SMALL, model: Any = None, grid=(8, 12)) -> Subject:
    samples = SampleFolder(samples_for(folder, WIDTHS, 1, grid))
    return Subject(model or teacher(), pictures_of(samples, 0, torch.device("cpu")), settings)
