"""The lock that keeps two processes or clicks from writing one part file, also where the drive itself cannot lock."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FetchError, printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

_said: set[Path] = set()


@contextmanager
def download_lock(path: Path) -> Generator[None, None, None]:
    """Holds a lock on the file ``path``, which is made and removed; a process that dies gives it back.

    Some network drives cannot lock. There a file in this machine's folder for temporary files is locked instead, so
    that only downloads of this machine keep out of each other's way; the log says so once. Nothing that fails when the
    lock is given back is raised: the work under it is done by then.

    Raises:
        FetchError: Somebody holds it, or the package filelock is not installed.
    """
    lock = acquired(path)
    if lock is None:
        if path.parent not in _said:
            _said.add(path.parent)
            logger.warning(
                "CLEAR: no file can be locked in %s, so only downloads on this machine wait for each other.",
                printable(path.parent, 200),
            )
        name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]
        lock = acquired(Path(tempfile.gettempdir()) / f"clear_{name}.lock")
    try:
        yield
    finally:
        if lock is not None:
            # Whatever a drive answers here (ENOLCK, EIO, a file in use), the download itself is not touched by it.
            with suppress(Exception):
                lock.release()
            with suppress(OSError):
                os.unlink(lock.lock_file)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def acquired(path: Path) -> BaseFileLock | None:
    """The lock on ``path``; None where files cannot be locked.

    Raises:
        FetchError: Somebody holds it.
    """
    try:
        from filelock import FileLock, Timeout  # a dependency of every huggingface_hub
    except ImportError as error:
        raise FetchError("the package huggingface_hub is not installed") from error
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if can_lock(path.parent):
            raise FetchError("it is already being fetched; wait for that to end") from None
        return None
    except (OSError, NotImplementedError):
        return None
    return lock


def can_lock(folder: Path) -> bool:
    """Whether files in this folder can be locked.

    Some versions of filelock answer with the same ``Timeout`` for a lock that is held and for a drive without locks.
    Nobody can hold a file of a new name, so it tells them apart.
    """
    from filelock import FileLock, Timeout

    probe = FileLock(folder / f"{secrets.token_hex(8)}.lock", timeout=0)
    try:
        probe.acquire()
    except (Timeout, OSError, NotImplementedError):
        return False
    finally:
        with suppress(Exception):
            probe.release()
        with suppress(OSError):
            os.unlink(probe.lock_file)
    return True
