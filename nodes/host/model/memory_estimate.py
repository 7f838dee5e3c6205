"""Our estimate of a call's memory in place of the host's, for one sampling at a time on a model that others share.

Source: ``BaseModel.memory_required``, which ``comfy.sampler_helpers.estimate_memory`` asks, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Required = Callable[[Any, Any], float | None]
"""Bytes from (base model, shape of the latent); None leaves it to the host."""

# Which base model gets which estimate in this context: in another thread, the same model keeps the host's own.
_current: ContextVar[tuple[Any, Required] | None] = ContextVar("clear_memory_estimate", default=None)

NAME = "memory_required"

_lock = threading.Lock()
_estimates: dict[int, Estimate] = {}


@dataclass
class Estimate:
    """The replaced ``memory_required`` of one base model, as long as samplings with CLEAR are being prepared.

    Attributes:
        base: The base model.
        own: What it had before.
        users: Samplings that are being prepared.
    """

    base: Any
    own: Callable[..., float]
    users: int = 0

    def __call__(self, input_shape: Any, *args: Any, **kwargs: Any) -> float:
        """Bytes for a latent of this shape, as the host asks for them."""
        current = _current.get()
        ours = current[1](self.base, input_shape) if current is not None and current[0] is self.base else None
        return self.own(input_shape, *args, **kwargs) if ours is None else ours


@contextmanager
def own_estimate(base: Any, required: Required) -> Generator[None]:
    """Put ``required`` in place of ``base.memory_required`` inside, in this context only.

    A factor on the shared base model would count for every sampling that is prepared meanwhile; and two of them that
    end in the order of their beginning would leave it changed for good.
    """
    with _lock:
        estimate = _estimates.get(id(base))
        if estimate is None:
            estimate = _estimates[id(base)] = Estimate(base, base.memory_required)
            object.__setattr__(base, NAME, estimate)
        estimate.users += 1
    token = _current.set((base, required))
    try:
        yield
    finally:
        _current.reset(token)
        with _lock:
            estimate.users -= 1
            if not estimate.users:
                del _estimates[id(base)]
                _restore(estimate)


def _restore(estimate: Estimate) -> None:
    """Take the replacement off again, unless a third-party patch has replaced it meanwhile."""
    attributes = vars(estimate.base)
    if attributes.get(NAME) is estimate:
        is_method = getattr(estimate.own, "__func__", None) is getattr(type(estimate.base), NAME)
        if is_method:
            del attributes[NAME]
        else:
            attributes[NAME] = estimate.own
