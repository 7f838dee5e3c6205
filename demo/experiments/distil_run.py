"""Runs the distillations of the laboratory, each once: a folder keeps figures, and checkpoints of what is cut off."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clear_core.distill.config import TrainConfig, check_config
from clear_core.distill.evaluate import mean_error, velocity_errors
from clear_core.distill.samples import SampleFolder
from clear_core.distill.set_up import set_up
from clear_core.distill.train import Distillation, distil

from .distil_models import MODELS, Samples, samples_of
from .distil_plans import SUBJECTS, Extent, Method, Subject

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One distillation, or none: the windows on the model's own weights.

    Attributes:
        radius: Of the window.
        steps: 0 measures the windows before any training.
        trial: Whether it is a trial of a rate, judged on other scenes.
    """

    subject: Subject
    radius: int
    method: Method
    rate: float = 0.0
    steps: int = 0
    trial: bool = False

    @property
    def name(self) -> str:
        """Of its files."""
        kind = "trial " if self.trial else ""
        what = f"base {self.method.base}" if not self.steps else f"{self.method.name}, rate {self.rate:g}"
        return f"{kind}radius {self.radius}, {what}, {self.steps} steps"


class Folder:
    """Figures by run; missing ones are made.

    Attributes:
        path: The folder.
        extent: How much is computed; a folder holds runs of one extent.
    """

    def __init__(self, path: Path, extent: Extent) -> None:
        self.path, self.extent = path, extent
        self.samples = functools.cache(self._samples)

    def _samples(self, subject: Subject) -> Samples:
        return samples_of(subject, self.path, self.extent)

    def row(self, run: Run) -> Row:
        """Errors of a run by noise level, and their mean; "trained": how many numbers."""
        file = self.path / run.subject.key / f"{run.name}.json"
        if not file.exists():
            row = self._made(run, file.with_suffix(""))
            file.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))

    def before(self, subject: Subject, radius: int, base: str) -> Row:
        """The windows on the model's own weights, by precision of these: low rank and whole weights begin alike."""
        return self.row(Run(subject, radius, Method(16, base)))

    def trials(self, subject: Subject, method: Method) -> dict[float, float]:
        """Mean error after a short distillation by rate, on scenes that the record does not judge."""
        return {
            rate: self.row(Run(subject, subject.trial_radius, method, rate, self.extent.trial_steps, trial=True))[
                "mean"
            ]
            for rate in method.rates
        }

    def rate(self, subject: Subject, method: Method) -> float:
        """The rate with the smallest error in the trials."""
        tried = next(each for each in subject.methods if each.rank == method.rank and each.rates)
        found = self.trials(subject, tried)
        return min(found, key=lambda rate: found[rate])

    def distilled(self, subject: Subject, radius: int, method: Method) -> Row:
        """The record's own run: at the chosen rate, for all steps."""
        rate = self.rate(subject, method)
        return self.row(Run(subject, radius, method, rate, self.extent.steps)) | {"rate": rate}

    def _made(self, run: Run, checkpoints: Path) -> Row:
        from accelerate import Accelerator

        samples = self.samples(run.subject)
        config = TrainConfig(
            run.radius,
            steps=max(run.steps, 1),
            batch=self.extent.batch_of(run.subject),
            rate=run.rate or None,
            warm_up=min(10, max(run.steps - 1, 0)),
            schedule="linear",
            guidance=run.subject.guidance,
            rank=run.method.rank,
            base=run.method.base,
        )
        # In 16 bits, as models are trained.
        model = MODELS[run.subject.key].load(self.path, self.extent).to(torch.bfloat16)
        found = set_up(model, samples.trained, config, Accelerator(cpu=True))
        if run.steps:
            checkpoints.mkdir(parents=True, exist_ok=True)
            check_config(checkpoints, config, 1, {"samples": len(samples.trained)})
            distil(found, checkpoints, save_every=20)
        errors = judged(found, samples.compared if run.trial else samples.judged)
        return {
            "mean": mean_error(errors),
            "mse": {str(level): error for level, error in errors.items()},
            "trained": sum(parameter.numel() for parameter in found.pair.trained().values()),
        }


def judged(found: Distillation, samples: SampleFolder) -> dict[float, float]:
    """Velocity errors of the student by noise level, in the precision of the training."""
    with found.autocast():
        return velocity_errors(found.pair, samples, guidance=found.guidance)


def run_all(folder: Folder, done: Callable[[str], None], only: str | None = None) -> None:
    """Makes every figure of the record.

    Args:
        done: Called with a name after each part.
        only: Key of the one subject to run; None for all.
    """
    for subject in SUBJECTS:
        if only in (None, subject.key):
            for method in subject.methods:
                for radius in subject.radii:
                    folder.before(subject, radius, method.base)
                    folder.distilled(subject, radius, method)
                    done(f"{subject.title}, radius {radius}, {method.name}")
