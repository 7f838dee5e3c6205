"""Errors of weights files and of their download, each one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from ..wording import printable


class ClearFileError(ValueError):
    """A weights file cannot be used; the message is one line that says why and what to do."""


class FetchError(RuntimeError):
    """A download failed; the message is one line that says why and what to do by hand."""


def first_few(names: Iterable[str], count: int, few: int = 3) -> str:
    """``"a, b, c and 12 more"`` for ``count`` names; no more than ``few`` are taken from the iterable."""
    listed = ", ".join(printable(name) for name in islice(names, few))
    return f"{listed} and {count - few} more" if count > few else listed


def dims(shape: Sequence[int]) -> str:
    """``"3072 x 3072"``."""
    return " x ".join(str(size) for size in shape) or "a single number"
