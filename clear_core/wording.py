"""A user's value as a message repeats it: on one line, and short however long it is."""

from __future__ import annotations

import reprlib

LONGEST = 80
"""Characters of a value in a message; enough for a file's name."""

LARGEST_INTEGER_BITS = 200
"""Python refuses to write integers of more than 4,300 digits; such a number is told by its length long before."""


def printable(text: object, limit: int = LONGEST) -> str:
    """``text`` made fit for one line of a message; names inside a file are not trusted."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def quoted(value: object, limit: int = LONGEST) -> str:
    """A value of any kind as Python would write it, shortened: texts in quotes, numbers without."""
    if isinstance(value, str):
        return repr(printable(value, limit))
    if isinstance(value, int) and value.bit_length() > LARGEST_INTEGER_BITS:
        return f"a whole number of {value.bit_length()} bits"
    return printable(reprlib.repr(value), limit)
