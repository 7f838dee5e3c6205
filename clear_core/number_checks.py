"""Whether a number can be used: finite, in its range, and whole where it counts something.

NaN passes every comparison that asks whether a number is too small or too large, so a check asks the other way round.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, cast

from .wording import quoted


def check_number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse what is no finite number in a range.

    Args:
        name: Of the setting, as the message tells it.
        value: Anything; nodes hand on what a link brings.
        least, most: The range, both included.
        whole: Whether it must be an integer.
        above: Whether ``least`` itself is excluded.

    Raises:
        ValueError: It is none; the sentence names it and the range.
    """
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not _lies_in(value, least, most, above):
        raise ValueError(f"{name} is {quoted(value)}; expected {_expected(least, most, whole, above)}.")


def check_percents(start: object, end: object) -> None:
    """Refuse what is no part of the sampling: ``start_percent`` and ``end_percent``, 0 to 1, the start first.

    Raises:
        ValueError: It is none; the sentence names both.
    """
    check_number("start_percent", start, 0, 1)
    check_number("end_percent", end, 0, 1)
    if cast(float, start) > cast(float, end):
        raise ValueError(
            f"start_percent is {start!r} and end_percent {end!r}; expected 0 <= start_percent <= end_percent <= 1."
        )


def _lies_in(value: Any, least: float, most: float, above: bool) -> bool:
    """Finite and in the range; by comparisons alone, since an integer may be too large to become a float."""
    return -math.inf < value < math.inf and least <= value <= most and not (above and value == least)


def _expected(least: float, most: float, whole: bool, above: bool) -> str:
    number = "a whole number" if whole else "a number"
    if math.isinf(least) and math.isinf(most):
        return number if whole else "a finite number"
    if math.isinf(most):
        return f"{number} above {_plain(least)}" if above else f"{number} of at least {_plain(least)}"
    if math.isinf(least):
        return f"{number} of at most {_plain(most)}"
    return f"{number} {'above' if above else 'from'} {_plain(least)} {'and up to' if above else 'to'} {_plain(most)}"


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
