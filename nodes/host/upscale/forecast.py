"""How long denoising takes: planned work over the measured throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.inspection.units import time_words
from ....clear_core.sdedit import TileLayout
from ..model.call_counter import CallCounter
from ..model.picture_model import picture_model
from ..model.read import effective_of, has_windows
from ..model.sequence import sampler_conds, sequence_of
from ..model.throughput import StopWatch, last_throughput, running

# Counted over planned work by sampler: about 2 for samplers that evaluate the model twice a step, less if a
# third-party cache answers calls. Measured, so that no list of samplers has to be kept.
_evaluations: dict[str, float] = {}


def step_gflops(model: ModelPatcher, tiles: TileLayout, conds: list[Any], batch: int) -> float:
    """Planned work of one model evaluation of the whole frame, in 10**9 operations.

    Args:
        tiles: All of them are computed in one step.
        conds: Conditionings that are evaluated, the negative ones included if cfg is not 1.
        batch: Images.
    """
    planned, watch, picture = CallCounter(), StopWatch.of(model), picture_model(model)
    for tile in tiles.tiles:
        for cond in sampler_conds(conds):
            layout = sequence_of(picture, cond, tiles.units.token_grid((tile.height, tile.width)))
            pairs = effective_of(model, layout, tiles.grid).pairs if has_windows(model) else None
            planned.add(batch, layout.length, watch.blocks * layout.length**2 if pairs is None else pairs, "")
    return watch.gflops(planned)


def is_known_work(model: ModelPatcher) -> bool:
    """Whether planned work of a model is counted in operations, so that the throughput of another run serves it."""
    return StopWatch.of(model).is_known


def time_text(planned: float | None, sampler_name: str) -> str:
    """How long so much planned work (10**9 operations, over all stages and steps) takes, as far as that is known.

    Args:
        planned: None if it is not counted in operations.
        sampler_name: Of the sampler that runs it.
    """
    throughput = last_throughput()
    if throughput is None or planned is None:
        return "time: known after the first step"
    seconds = planned * _evaluations.get(sampler_name, 1.0) / throughput.gflops_per_second
    return f"time: about {time_words(seconds)} of denoising, at the throughput of the last run"


@dataclass
class StageForecast:
    """What is left of a stage while it runs.

    Attributes:
        sampler_name: Of the sampler that runs it.
        planned: Work of one step from :func:`step_gflops`.
        first: Work that was counted when the first step was reported.
    """

    sampler_name: str
    planned: float
    first: float = 0.0

    def seconds_left(self, out: Tensor, done: int, total: int) -> float | None:
        """Seconds for the steps that are left, or None if that is not known.

        Args:
            out: Result of the step that was just done.
            done, total: Steps.
        """
        run = running()
        throughput = run.throughput(out) if run else None
        if run is None or throughput is None:
            return None
        counted = run.gflops
        if done == 1:
            self.first = counted
            evaluations = _evaluations.get(self.sampler_name)
            one_step = counted if evaluations is None else evaluations * self.planned
        else:
            # Samplers of second order report a step before its second evaluation, so the first report is no step.
            one_step = (counted - self.first) / (done - 1)
        if done >= total:
            _evaluations[self.sampler_name] = counted / (total * self.planned)
        if done > total:  # dpm_adaptive takes as many steps as it needs.
            return None
        return one_step * (total - done) / throughput.gflops_per_second
