"""How far a command has come: a bar of tqdm in a terminal, and whole lines in a log file. Every command asks here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

T = TypeVar("T", covariant=True)

BETWEEN_LINES = 30.0
"""Seconds from one line in a log file to the next: a training of a day writes some thousand."""


class Bar(Protocol[T]):
    """What a bar of tqdm and ``Lines`` have in common: an iterable over what it was given, and a context."""

    n: int
    total: int | None

    def __iter__(self) -> Iterator[T]: ...
    def __enter__(self) -> Bar[T]: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...
    def update(self, n: int = 1, /) -> Any: ...
    def reset(self, total: int | None = None) -> None: ...
    def set_description(self, desc: str) -> None: ...
    def set_postfix_str(self, s: str) -> None: ...


def bar(
    items: Iterable[T] | None = None,
    *,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    leave: bool = True,
    shown: bool = True,
) -> Bar[T]:
    """A bar over ``items``, or one that ``update`` moves on; it ends with the loop or the ``with`` block.

    Without tqdm, and where standard error is no terminal, it is made of whole lines: one every ``BETWEEN_LINES``
    seconds, and one at the end.

    Args:
        items: What is counted while it is iterated over.
        unit: What one of them is called, in the singular.
        total: How many there will be; by default the length of ``items``, if it has one.
        initial: How many were done before.
        desc: What is done; ``set_description`` changes it.
        leave: Whether the last state stays to be seen.
        shown: Whether there is anything to be seen.
    """
    if shown and in_terminal():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            made = tqdm(items, total=total, initial=initial, unit=unit, desc=desc or None, leave=leave)
            return cast("Bar[T]", made)
    return Lines(items, unit, total, initial, desc, leave and shown, BETWEEN_LINES if shown else float("inf"))


def in_terminal() -> bool:
    """Whether standard error is a terminal, in which a bar can be drawn over and over on its line."""
    return sys.stderr.isatty()


def silence_libraries() -> None:
    """Turns off the bars of diffusers and transformers, as far as they are loaded, where they cannot be drawn."""
    for name in ("diffusers.utils.logging", "transformers.utils.logging"):
        if name in sys.modules and not in_terminal():
            sys.modules[name].disable_progress_bar()


def losses_told(losses: Mapping[str, float]) -> str:
    """Losses after the count of a bar's steps."""
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())


def note(text: str) -> None:
    """Prints a line to standard output, above a bar that is drawn at this moment."""
    if "tqdm" in sys.modules and in_terminal():
        sys.modules["tqdm"].tqdm.write(text)
    else:
        print(text, flush=True)


class Lines(Generic[T]):
    """A bar as whole lines of a log file; the arguments as in ``bar``."""

    def __init__(
        self,
        items: Iterable[T] | None,
        unit: str,
        total: int | None,
        initial: int,
        desc: str,
        leave: bool,
        between: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n = self._initial = initial
        self.total = total if total is not None or not hasattr(items, "__len__") else len(cast("list[T]", items))
        self._items, self._unit, self._desc, self._leave = items, unit, desc, leave
        self._said, self._between, self._clock = "", between, clock
        self._begun = self._told = clock()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self.update()

    def __enter__(self) -> Lines[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = kind is not None and self.n == self._initial  # Its own sentence says why.
        if self._leave and not refused:
            self._tell("stopped at " if kind is not None else "")
        self._leave = False

    def update(self, n: int = 1) -> None:
        """Counts ``n`` more."""
        self.n += n
        if self._clock() - self._told >= self._between:
            self._tell()

    def reset(self, total: int | None = None) -> None:
        """Begins again with another total."""
        self.n = self._initial = 0
        self.total = total

    def set_description(self, desc: str) -> None:
        self._desc = desc

    def set_postfix_str(self, s: str) -> None:
        """What is told after the count, from the next line on."""
        self._said = s

    def _tell(self, state: str = "") -> None:
        self._told = self._clock()
        before = f"{self._desc}: " if self._desc else ""
        total = f" of {self.total}" if self.total is not None else ""
        after = f", {self._said}" if self._said else ""
        spent = self._told - self._begun
        print(f"{before}{state}{self.n}{total} {self._unit}s in {spent:.0f} s{after}", file=sys.stderr, flush=True)
