"""Work before the first result of a kernel: what is done, and how long it took last time.

Compiling, testing and timing a kernel take from a second to a minute, in which nothing else is seen to happen. It goes
to the log, and to a listener that shows it to the user.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from .disk_cache import keep, kept, user_cache_folder

logger = logging.getLogger(__name__)

Listener = Callable[[str], None]
"""Takes a sentence, in the thread that works; each replaces the one before."""

LONGEST_SECONDS = 3600.0
"""A kept time above this is taken for damage."""

_listeners: list[Listener] = []

_running: ContextVar[bool] = ContextVar("clear_first_use", default=False)

# Work that failed is begun again by every block if memory was short; it is told once.
_failed: set[str] = set()


def listen(listener: Listener | None) -> None:
    """Show what is done to ``listener``, in place of an earlier one; to nobody if it is None."""
    _listeners[:] = [] if listener is None else [listener]


def is_running() -> bool:
    """Whether this thread is inside such work, so that a part of it need not be told too."""
    return _running.get()


@contextmanager
def first_use(work: str, device: torch.device, *details: object) -> Generator[None]:
    """Tells of the work inside when it begins and ends, and keeps its time for the next start.

    Args:
        work: What is done, as the subject of a sentence: "Compiling ...".
        device: Where.
        details: What else the time depends on: dtype, head size.
    """
    what = f"{work} for {_device_name(device)}"
    key = ", ".join([what, f"torch {torch.__version__}", *map(str, details)])
    if key in _failed:
        yield
        return
    last = _last_seconds(key)
    _tell(f"{what} ({'for the first time here' if last is None else f'took {_words(last)} last time'}) ...")
    token, begun = _running.set(True), time.perf_counter()
    try:
        yield
    except Exception:
        _failed.add(key)
        _tell(f"{what} failed after {_words(time.perf_counter() - begun)}.")
        raise
    finally:
        _running.reset(token)
    seconds = time.perf_counter() - begun
    keep(_file(), key, round(seconds, 3))
    _tell(f"{what} took {_words(seconds)}.")


def _file() -> Path:
    return user_cache_folder() / "first_use_seconds.json"


def _last_seconds(key: str) -> float | None:
    """The kept time, or None; the file is not trusted."""
    found = kept(_file()).get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) and 0 <= found <= LONGEST_SECONDS else None


def _tell(sentence: str) -> None:
    logger.info("CLEAR attention: %s", sentence)
    for listener in tuple(_listeners):
        try:
            listener(sentence)
        except Exception as error:
            # A page that cannot be written to is no reason to make no picture.
            logger.debug("CLEAR attention: this was not shown (%s).", error)


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def _device_name(device: torch.device) -> str:
    """The name that the user knows."""
    if device.type == "cpu":
        return "the CPU"
    try:
        return getattr(torch, device.type).get_device_name(device)
    except Exception:
        # Not every kind of device has names.
        return str(device)
