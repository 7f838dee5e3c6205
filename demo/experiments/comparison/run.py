"""Runs the trainings of the comparison, each once: a folder keeps their figures."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear_core.distill.disk import no_half_file

from ...tiny_flux.weights import load_tiny_flux, model_fingerprint
from ..measure import LEVELS, Bench, Quality, judge, set_bench
from ..train import make_samples
from .plans import STRENGTH, Extent, Row
from .students import DivergedError, settings, student_of, train

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    from clear_core.distill.samples import SampleFolder

Figures = dict[str, Any]

BEGUN = "begun.json"


class BegunError(ValueError):
    """A folder holds figures of something else."""


@dataclass(frozen=True)
class Run:
    """One training, or none: an attention on the model's own weights.

    Attributes:
        steps: 0 judges the attention before any training.
        trial: Whether it is a trial of a rate, judged on other scenes and by their flows alone.
    """

    row: Row
    rate: float = 0.0
    seed: int = 0
    steps: int = 0
    trial: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        if not self.steps:
            return f"{self.row.kind}, as it is"
        return f"{'trial, ' * self.trial}{self.row.name}, rate {self.rate:g}, seed {self.seed}"


class Folder:
    """Figures by run; missing ones are made.

    Args:
        path: The folder.
        extent: How much is computed.
        model: The small FLUX's file; the committed one by default.

    Raises:
        BegunError: The folder was begun with another model or extent.
    """

    def __init__(self, path: Path, extent: Extent, model: Path | None = None) -> None:
        self.path, self.extent, self.model = path, extent, model
        self.fingerprint = model_fingerprint(model)
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_begun()

    def _check_begun(self) -> None:
        file = self.path / BEGUN
        # As JSON has it: a tuple comes back as a list.
        mine: Figures = json.loads(
            json.dumps({"model": self.fingerprint, "strength": STRENGTH, "levels": LEVELS} | asdict(self.extent))
        )
        begun: Figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else mine
        for name, value in mine.items():
            if begun.get(name) != value:
                raise BegunError(
                    f"{self.path} was begun with {name} {begun.get(name)}, and now it is {value}; choose another "
                    "folder by --out."
                )
        _write(file, mine)

    @functools.cached_property
    def teacher(self) -> FluxTransformer2DModel:
        """The model with its dense attention."""
        return load_tiny_flux(self.model)

    @functools.cached_property
    def bench(self) -> Bench:
        """The record's scenes, with the dense model's flows and pictures."""
        extent = self.extent
        size = (extent.side, extent.side)
        return set_bench(self.teacher, extent.scenes, extent.pictures, size, strength=STRENGTH)

    @functools.cached_property
    def compared(self) -> Bench:
        """Other scenes, by which rates are chosen."""
        extent = self.extent
        size = (extent.side, extent.side)
        return set_bench(self.teacher, extent.compared, 0, size, first=extent.scenes)

    @functools.cached_property
    def samples(self) -> SampleFolder:
        """What all rows are trained on."""
        return make_samples(self.path / "samples", self.extent.samples, [(self.extent.side, self.extent.side)])

    def figures(self, run: Run) -> Figures:
        """What :func:`judge` says of a run; of a trial the mean error alone, None if it diverged.

        Raises:
            DivergedError: It is no trial, and a loss or a weight is not finite.
        """
        return self._kept(run.name, lambda: self._trial(run) if run.trial else self._made(run))

    def dense(self) -> Figures:
        """What the measures say of the dense model itself."""
        return self._kept("dense", lambda: {"found": self.bench.found})

    def _kept(self, name: str, make: Callable[[], Figures]) -> Figures:
        file = self.path / f"{name}.json"
        if not file.exists():
            _write(file, make())
        return json.loads(file.read_text(encoding="utf-8"))

    def _trained(self, run: Run, bench: Bench) -> tuple[Quality, int]:
        student = student_of(copy.deepcopy(self.teacher), self.extent.attention(run.row.kind), run.row.distilled)
        if run.steps:
            config = settings(run.steps, self.extent.batch, run.rate, run.seed)
            try:
                train(student, self.samples, config)
            except DivergedError as error:
                raise DivergedError(f"{run.name}: {error}") from error
        return judge(bench, student.model), sum(weight.numel() for weight in student.trained.values())

    def _made(self, run: Run) -> Figures:
        quality, trained = self._trained(run, self.bench)
        return {
            "mean": quality.mean_mse,
            "mse": {str(level): error for level, error in quality.velocity_mse.items()},
            "psnr": quality.psnr,
            "ssim": quality.ssim,
            "layout": quality.layout,
            "found": quality.found,
            "trained": trained,
        }

    def _trial(self, run: Run) -> Figures:
        try:
            quality, _ = self._trained(run, self.compared)
        except DivergedError:
            return {"mean": None}
        return {"mean": quality.mean_mse if math.isfinite(quality.mean_mse) else None}

    def before(self, row: Row) -> Figures:
        """The attention on the model's own weights."""
        return self.figures(Run(row))

    def trials(self, row: Row) -> dict[float, float | None]:
        """Mean error after a short training by rate, on scenes that the record does not judge."""
        extent = self.extent
        return {
            rate: self.figures(Run(row, rate, extent.trial_seed, extent.trial_steps, trial=True))["mean"]
            for rate in extent.rates
        }

    def rate(self, row: Row) -> float:
        """The rate with the smallest error in the trials.

        Raises:
            DivergedError: None of them ended.
        """
        found = {rate: mean for rate, mean in self.trials(row).items() if mean is not None}
        if not found:
            tried = ", ".join(f"{rate:g}" for rate in self.extent.rates)
            raise DivergedError(f"{row.name} diverged at every rate that was tried ({tried}); add smaller ones.")
        return min(found, key=lambda rate: found[rate])

    def after(self, row: Row, seed: int) -> Figures:
        """The record's own training: at the chosen rate, for all steps."""
        return self.figures(Run(row, self.rate(row), seed, self.extent.steps))


def _write(file: Path, figures: Figures) -> None:
    """Writes a file that is whole or absent."""
    with no_half_file(file) as part:
        part.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def jobs(folder: Folder, rows: Sequence[Row]) -> list[tuple[str, Callable[[], object]]]:
    """Everything that a record needs, by name, in the order in which it is made: rates are chosen first."""
    extent = folder.extent
    listed: list[tuple[str, Callable[[], object]]] = [("dense", folder.dense)]
    for row in rows:
        if not row.distilled:
            listed.append((f"{row.name}, as it is", functools.partial(folder.before, row)))
        listed += [
            (run.name, functools.partial(folder.figures, run))
            for run in (Run(row, rate, extent.trial_seed, extent.trial_steps, trial=True) for rate in extent.rates)
        ]
    # Seed by seed, so that a run that is cut off has whole comparisons.
    for seed in extent.seeds:
        listed += [(f"{row.name}, seed {seed}", functools.partial(folder.after, row, seed)) for row in rows]
    return listed
