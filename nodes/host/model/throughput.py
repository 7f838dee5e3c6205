"""Throughput of this machine: counted work over measured time, the one source of every forecast.

Source: ``comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE`` and ``APPLY_MODEL``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ....clear_core.cost import model_gflops
from ....clear_core.frame_units import FrameUnits
from ....clear_core.inspection.facts import Throughput
from ....clear_core.layout import token_grid
from .call_counter import CallCounter, start_counting, stop_counting
from .picture_model import picture_model
from .sequence import sequence_tokens
from .tile_frame import KEY as FRAME_PART
from .transformer import transformer_of

KEY = "clear_flux_pace"

UNKNOWN = (1, 1024, 4.0)
"""Blocks, width and MLP ratio that stand for a model whose blocks are not known: its work is counted in a unit of its
own, which serves the time that is left in a stage and nothing else."""

_last: list[Throughput] = []


def last_throughput() -> Throughput | None:
    """Throughput of the last run, or None if nothing was timed since the host started."""
    return _last[-1] if _last else None


@dataclass
class Run:
    """One sampling that is being timed.

    Attributes:
        watch: Knows the model's shape.
        began: Time at its start.
        counter: What its calls computed so far.
        first: (time at the end of the first call, 10**9 operations of that call), or None before.
    """

    watch: StopWatch
    began: float
    counter: CallCounter = field(default_factory=CallCounter)
    first: tuple[float, float] | None = None

    @property
    def gflops(self) -> float:
        """Work so far in 10**9 operations, the first call included."""
        return self.watch.gflops(self.counter)

    def after_call(self, out: Tensor) -> None:
        """Take the time of the first counted call; ``out`` is its result."""
        if self.first is None and self.counter.calls:
            wait_for(out)
            self.first = (time.perf_counter(), self.gflops)

    def throughput(self, out: Tensor) -> Throughput | None:
        """Throughput so far, or None if nothing was counted.

        The first call is excluded if there are more: kernels are compiled and weights loaded in it.

        Args:
            out: The last result, which the device may still compute.
        """
        if self.first is None:
            return None
        wait_for(out)
        end_of_first, work_of_first = self.first
        seconds, work = time.perf_counter() - end_of_first, self.gflops - work_of_first
        calls = self.counter.calls - 1
        if not calls:
            seconds, work, calls = end_of_first - self.began, work_of_first, 1
        return Throughput(work / max(seconds, 1e-9), calls, f"{self.counter.text}, {self.watch.device}")


# Like the counter: the host's threads for other devices start without a context.
_running: ContextVar[Run | None] = ContextVar("clear_run", default=None)


def running() -> Run | None:
    """The timed sampling that runs now in this thread, or None."""
    return _running.get()


def wait_for(out: Tensor) -> None:
    """Return when the device has computed it."""
    out.flatten()[0].item()


@dataclass(frozen=True)
class StopWatch:
    """The wrappers that time the samplings of one model.

    Attributes:
        blocks: Of the model.
        width, mlp_ratio: Of its hidden states.
        device: Name of the device.
        units: How the model's frame is made.
        is_dense: Whether the model has no CLEAR, so that nobody else counts its calls.
        is_known: Whether the model's blocks are known, so that its throughput says something about the machine.
    """

    blocks: int
    width: int
    mlp_ratio: float
    device: str
    units: FrameUnits
    is_dense: bool = False
    is_known: bool = True

    @classmethod
    def of(cls, model: ModelPatcher, is_dense: bool = False) -> StopWatch:
        """For a model that makes pictures.

        Raises:
            ValueError: It makes none.
        """
        transformer, units = transformer_of(model), picture_model(model).units
        device = comfy.model_management.get_torch_device_name(model.load_device)
        if transformer is None:
            return cls(*UNKNOWN, device, units, is_dense, is_known=False)
        shape = transformer.activations
        return cls(transformer.blocks, shape.width, shape.mlp_ratio, device, units, is_dense)

    def install(self, model: ModelPatcher) -> None:
        """Put it on a clone, in place of an earlier one."""
        for wrapper_type, wrapper in ((WrappersMP.SAMPLER_SAMPLE, self.sample), (WrappersMP.APPLY_MODEL, self.call)):
            model.remove_wrappers_with_key(wrapper_type, KEY)
            model.add_wrapper_with_key(wrapper_type, KEY, wrapper)

    def gflops(self, counter: CallCounter) -> float:
        """What was counted, in 10**9 operations: attention, and what the blocks do to each token."""
        return model_gflops(counter.tokens, counter.pairs, self.blocks, self.width, self.mlp_ratio)

    def sample(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        """Time one sampling, and remember its throughput."""
        run = Run(self, time.perf_counter())
        token, counting = _running.set(run), start_counting(run.counter)
        try:
            out = executor(*args, **kwargs)
        finally:
            stop_counting(counting)
            _running.reset(token)
        throughput = run.throughput(out)
        if throughput is not None and self.is_known:
            _last[:] = [throughput]
        return out

    def call(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  # the host's own default, only read
        **extra: Any,
    ) -> Tensor:
        """One call of the model. A dense one counts as a whole, even if a third-party cache answered it."""
        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        run = running()
        if run is not None:
            units = self.units
            if self.is_dense and (tokens := sequence_tokens(x, c_crossattn, extra, units.token_cells)):
                part = transformer_options.get(FRAME_PART)
                rows, columns = x.shape[-2:]
                height, width = part.grid if part else token_grid(rows, columns, units.cells)
                text = f"{width * units.pixels} x {height * units.pixels} px without windows"
                run.counter.add(x.shape[0], tokens, self.blocks * tokens**2, text)
            run.after_call(out)
        return out


def timed(model: ModelPatcher) -> ModelPatcher:
    """The model, or if nothing times it yet, a clone that is timed as dense attention."""
    if model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        return model
    clone = model.clone()
    StopWatch.of(model, is_dense=True).install(clone)
    return clone
