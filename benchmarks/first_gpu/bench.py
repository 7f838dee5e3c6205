"""What every measurement works with: the device and the sizes, and one way to try what may fail."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from clear_core.attention import unavailable_reason

from ..timing import error_line, synchronize
from .scale import Scale

_Value = TypeVar("_Value")


class DeviceLostError(Exception):
    """After an error nothing runs on the device any more in this process. The message is the error, in one line."""

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(reason)
        self.run = run


@dataclass(frozen=True)
class Bench:
    """Device and sizes.

    Attributes:
        scale: Sizes.
        device: Where it is measured.
        results: What was found so far, by key.
        excluded: Runs that are not tried again, with the reason.
        announce: Told the name of each run before it is tried.
    """

    scale: Scale
    device: torch.device
    results: Mapping[str, dict[str, Any]]
    excluded: Mapping[str, str]
    announce: Callable[[str], None]

    @property
    def peak_tflops(self) -> float | None:
        """Rate of a large matrix product, which shares of the peak refer to; None if it could not be measured."""
        return self.results.get("peak", {}).get("matmul_tflops")

    def attempt(self, run: str, function: Callable[[], _Value]) -> tuple[_Value | None, str | None]:
        """The function's value and None, or None and the reason why there is none.

        Raises:
            DeviceLostError: It left the device unusable.
        """
        if run in self.excluded:
            return None, self.excluded[run]
        self.announce(run)
        try:
            value = function()
            synchronize(self.device)
        except Exception as error:
            reason = error_line(error)
        else:
            return value, None
        if not is_alive(self.device):
            raise DeviceLostError(run, reason)
        release(self.device)
        return None, reason

    def refusal(self, backend: str, dtype: torch.dtype | None = None) -> str | None:
        """Why a backend cannot run here, as the end of a sentence; None if it can. Its self-test is tried as a run.

        Args:
            dtype: The layers' if it is None.
        """
        asked = partial(unavailable_reason, backend, self.device, dtype or self.scale.dtype, self.scale.head_dim)
        reason, failed = self.attempt(backend, asked)
        return failed or reason


def is_alive(device: torch.device) -> bool:
    """Whether a device still computes; after an illegal memory access a card does nothing more for its process."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2
    except Exception:
        return False


def release(device: torch.device) -> None:
    """Gives back memory that nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Measurement:
    """One entry of the plan.

    Attributes:
        key: Its name in the record.
        section: The heading under which it is shown.
        expected: Seconds it should take on a card, compilers included: it is begun only if these are left.
        run: Makes it. The result has a ``line`` to be shown, and by convention ``runs`` and ``skipped`` by name.
        later: Whether it waits until all others were made.
    """

    key: str
    section: str
    expected: float
    run: Callable[[Bench], dict[str, Any]]
    later: bool = False
