"""Room on the disk: asked for before long work, and no half file if it runs out all the same."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..wording import printable

FULL = (errno.ENOSPC, errno.EDQUOT)
WINDOWS_FULL = 112


class DiskFullError(OSError):
    """A disk has no room; the sentence names the folder and what to do."""


def check_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: An existing folder on the disk.
        bytes_needed: What is still to be written there.
        what: Its name in the message, in the plural: "12 samples".

    Raises:
        DiskFullError: Less is free.
    """
    free = shutil.disk_usage(folder).free
    if bytes_needed > free:
        raise DiskFullError(
            f"{what} need {size_text(bytes_needed)} in {folder}, and {size_text(free)} are free there; make "
            "room, or choose a folder on another disk."
        )


@contextmanager
def no_half_file(path: Path) -> Generator[Path]:
    """A path to write to, beside ``path``; the file gets its name when it is whole, and is removed if it fails.

    Raises:
        DiskFullError: The disk became full.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if is_full(error):
            raise DiskFullError(
                f"the disk is full: {printable(path.name)} was not written to {path.parent}; make room and "
                "start again, it goes on from here."
            ) from error
        raise


@contextmanager
def no_half_folder(part: Path, what: str) -> Generator[None]:
    """Removes a folder that is being written if that fails.

    Args:
        what: Name of the whole in the message.

    Raises:
        DiskFullError: The disk became full.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_full(error):
            raise DiskFullError(
                f"the disk is full: {what} was not written to {printable(part.parent)}; make room and start again, it "
                "goes on from the last one."
            ) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error of Python, safetensors or ``torch.save`` says that there is no room on the disk."""
    if isinstance(error, OSError):
        return error.errno in FULL
    # These two libraries write by themselves. One hands on the system's error as a text, the other one only says that
    # the file became shorter than what it wrote.
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in (*FULL, WINDOWS_FULL))
    return isinstance(error, RuntimeError) and "inline_container" in str(error) and "unexpected pos" in str(error)


def size_text(count: int) -> str:
    """Bytes in the unit that a reader expects."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
