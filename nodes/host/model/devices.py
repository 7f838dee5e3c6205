"""The devices that the host's MultiGPU node has prepared for a run, and work on all of them at once.

Source: ``model_options["multigpu_clones"]`` and ``["multigpu_thread_pool"]``, put there by
``comfy.samplers.CFGGuider.outer_sample``; ``comfy.multigpu.MultiGPUThreadPool``; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import comfy.model_management
import torch

from ....clear_core.parallel import PeersError

Result = TypeVar("Result")

CLONES, POOL = "multigpu_clones", "multigpu_thread_pool"

DEVICES = "clear_strip_devices"
"""Key of the :class:`Devices` in ``transformer_options`` that share the calls of a step."""


@dataclass(frozen=True)
class Device:
    """One of them.

    Attributes:
        rank: 0 for the device of the model itself.
        device: Of torch.
        model: The ``comfy.model_base.BaseModel`` whose weights are there.
    """

    rank: int
    device: torch.device
    model: Any


@dataclass(frozen=True)
class Devices:
    """All devices of a run, with a thread for each."""

    each: tuple[Device, ...]
    pool: Any

    @classmethod
    def of(cls, model_options: dict[str, Any]) -> Devices | None:
        """The devices of a run; None if there is one alone."""
        clones, pool = model_options.get(CLONES) or {}, model_options.get(POOL)
        if pool is None or len(clones) < 2:
            return None
        each = (Device(rank, device, clone.model) for rank, (device, clone) in enumerate(clones.items()))
        return cls(tuple(each), pool)

    def names(self, count: int) -> str:
        """Of the first ``count`` devices, for people."""
        return ", ".join(str(device.device) for device in self.each[:count])

    def run(self, work: Callable[[Device], Result], count: int, counted: bool = False) -> list[Result]:
        """The results of ``work`` on the first ``count`` devices, each in its own thread, as soon as all are there.

        The first error interrupts the others; it is raised when all have ended. The thread of rank 0 has this thread's
        context variables, by which a run is counted and timed.

        Args:
            counted: Whether the other threads have them too: each device does work of its own.
        """
        self._check_threads(count)
        inference = torch.is_inference_mode_enabled()
        errors: list[BaseException] = []

        def one(device: Device) -> Result | None:
            # Gradient and inference mode are per thread.
            try:
                with torch.inference_mode(inference), torch.no_grad():
                    return work(device)
            except BaseException as error:
                errors.append(error)
                comfy.model_management.interrupt_current_processing(True)
                return None

        for device in self.each[:count]:
            run = contextvars.copy_context().run if counted or device.rank == 0 else _plainly
            self.pool.submit(device.device, run, one, device)
        outcomes = [self.pool.get_result(device.device) for device in self.each[:count]]
        errors += [error for _, error in outcomes if error is not None]
        if errors:
            comfy.model_management.interrupt_current_processing(False)
            raise first_of(errors)
        return [result for result, _ in outcomes]

    def _check_threads(self, count: int) -> None:
        """Raises what kept a thread from its device: it would do no work, and the others would wait for it."""
        for device in self.each[:count]:
            self.pool.submit(device.device, _nothing)
        for _, error in [self.pool.get_result(device.device) for device in self.each[:count]]:
            if error is not None:
                raise error


def _nothing() -> None:
    """Work that shows whether a thread runs."""


def _plainly(function: Callable[..., Result], *args: Any) -> Result:
    return function(*args)


def first_of(errors: Sequence[BaseException]) -> BaseException:
    """The error that ended the others: neither their waiting in vain nor the interrupt that it caused, if possible."""
    consequences = (PeersError, comfy.model_management.InterruptProcessingException)
    for kinds in (consequences, PeersError):
        causes = [error for error in errors if not isinstance(error, kinds)]
        if causes:
            return causes[0]
    return errors[0]


def on_device(value: Any, device: torch.device) -> Any:
    """Tensors on a device: one, a list of them, or either in the host's wrapper (``comfy.conds.CONDRegular``)."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [on_device(one, device) for one in value]
    held = getattr(value, "cond", None)
    return type(value)(on_device(held, device)) if isinstance(held, torch.Tensor | list) else value


def inner_options(device: Device, options: dict[str, Any], **added: Any) -> dict[str, Any]:
    """The ``transformer_options`` of calls on one device, with some more."""
    inner = {**options, "multigpu_thread_device": device.device, **added}
    for name in ("sigmas", "sample_sigmas"):
        if name in inner:
            inner[name] = on_device(inner[name], device.device)
    return inner


def options_for(device: Device, model_options: dict[str, Any], **added: Any) -> dict[str, Any]:
    """The model options of steps on one device, as if it were the only one, with more ``transformer_options``."""
    options = {name: value for name, value in model_options.items() if name not in (CLONES, POOL)}
    options["transformer_options"] = inner_options(device, model_options.get("transformer_options", {}), **added)
    return options
