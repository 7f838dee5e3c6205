"""How fast this machine was in its last run: counted work over measured time, for the forecasts of CLEARInspect.

Source: ``comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.cost import clear_pairs, model_gflops
from ....clear_core.inspection.facts import Pace
from .family import model_shape
from .memory import activations_of

KEY = "clear_flux_pace"

# Counting is the same 57 times a step and at every step.
window_pairs_of = lru_cache(maxsize=64)(clear_pairs)

_last: list[Pace] = []


def last_pace() -> Pace | None:
    """The last run's, or None where no model with CLEAR was sampled since the host started."""
    return _last[-1] if _last else None


@dataclass
class Run:
    """One sampling that is being timed.

    Attributes:
        blocks: Of the model.
        width, mlp_ratio: Of its hidden states.
        device: Name of the device.
        began: When the calls that count began.
        work, calls: Since then, in 10**9 operations.
        words: What the last call was.
        warm_up: Work and seconds of the first call.
    """

    blocks: int
    width: int
    mlp_ratio: float
    device: str
    began: float = 0.0
    work: float = 0.0
    calls: int = 0
    words: str = ""
    warm_up: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        self.began, self.work, self.calls = time.perf_counter(), 0.0, 0

    def count(self, out: Tensor, tokens: int, pairs: int, words: str) -> None:
        """Count one call of the model.

        Args:
            out: Its answer, (B, C, H, W).
            tokens: Of one sequence.
            pairs: Of one sequence, over all blocks.
            words: What it was.
        """
        first = not self.words
        self.words = words
        self.work += out.shape[0] * model_gflops(tokens, pairs, self.blocks, self.width, self.mlp_ratio)
        self.calls += 1
        if first:
            # Kernels are compiled and weights brought to the card in the first call: it is not a pace.
            wait_for(out)
            self.warm_up = (self.work, time.perf_counter() - self.began)
            self.begin()

    def end(self, out: Tensor) -> None:
        """Remember the pace, unless nothing was counted."""
        if not self.words:
            return
        wait_for(out)
        work, seconds, calls = self.work, time.perf_counter() - self.began, self.calls
        if not calls:
            (work, seconds), calls = self.warm_up, 1
        _last[:] = [Pace(work / seconds, calls, f"{self.words}, {self.device}")]


# A run's calls are made in its own thread; those of other devices' threads are not counted.
_running: ContextVar[Run | None] = ContextVar("clear_run", default=None)


def running() -> Run | None:
    """The sampling that this call of the model belongs to."""
    return _running.get()


def wait_for(out: Tensor) -> None:
    """Return when the device has computed it."""
    out.flatten()[0].item()


@dataclass(frozen=True)
class PaceClock:
    """The SAMPLER_SAMPLE wrapper that times runs of one model."""

    blocks: int
    width: int
    mlp_ratio: float
    device: str

    @classmethod
    def of(cls, model: ModelPatcher) -> PaceClock:
        shape, activations = model_shape(model), activations_of(model)
        device = comfy.model_management.get_torch_device_name(model.load_device)
        return cls(shape.num_double + shape.num_single, activations.width, activations.mlp_ratio, device)

    def install(self, model: ModelPatcher) -> None:
        """Put it on a clone, in place of an earlier one."""
        model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self)

    def __call__(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        run = Run(self.blocks, self.width, self.mlp_ratio, self.device)
        token = _running.set(run)
        run.begin()
        try:
            out = executor(*args, **kwargs)
        finally:
            _running.reset(token)
        run.end(out)
        return out
