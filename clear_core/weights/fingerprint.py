"""A short name for what a file holds, so that two people can tell whether they have the same weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from .errors import ClearFileError, shown

DIGITS = 10
"""Of the SHA-256: as many as model sites show ("AutoV2"), and the first of the whole sum that a file's page shows."""

CHUNK = 1 << 24

Report = Callable[[int, int], None]
"""(bytes done, bytes in all); what it raises ends the reading."""

_known: dict[tuple[str, int, int], str] = {}


def fingerprint(path: str | os.PathLike[str], report: Report | None = None) -> str:
    """The first ten digits of the SHA-256 of a whole file.

    It is read once in the life of the process, and again where its size or the time of its last change differ. The
    released files have 3.6 GB: some seconds where the processor has SHA instructions and the file was read before.

    Raises:
        ClearFileError: The file cannot be read.
    """
    try:
        found = os.stat(path)
        key = (os.path.abspath(path), found.st_mtime_ns, found.st_size)
        if key not in _known:
            _known[key] = sha256(path, found.st_size, report)[:DIGITS]
    except OSError as error:
        raise ClearFileError(f"{shown(os.path.basename(path))} cannot be read: {shown(error.strerror)}.") from None
    return _known[key]


def sha256(path: str | os.PathLike[str], size: int, report: Report | None) -> str:
    """In hexadecimal digits; a chunk of the file is in memory at a time."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    done = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if report is not None:
                report(done, size)
    return digest.hexdigest()
