"""Fetching a released file from Hugging Face, by its catalogue name and only when asked.

The client is huggingface_hub's: its endpoint (``HF_ENDPOINT``), token, proxies and offline switch apply. Its
``hf_hub_download`` is not used, because from version 1 on it throws away what it has when a connection or a process
dies, and these are 3.6 GB files; the two steps that it is made of (ask for size and ETag, then stream) write to a part
file of ours instead, which the next attempt continues.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .catalogue import REPOSITORY, Release, find_release
from .errors import ClearFileError, shown
from .reader import read_clear_file

# Called with (bytes on disk, bytes in all); what it raises ends the download, which can be continued later.
Progress = Callable[[int, int], None]

# Part files live here, inside the target folder and so on the same volume: the last step is one rename.
STAGING = ".fetch"

# Attempts in a row that may bring no new byte.
IDLE_ATTEMPTS = 3

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchError(RuntimeError):
    """A download that did not succeed; the message is one line that says why and what to do by hand."""


@dataclass(frozen=True)
class Announced:
    """What the hub says about a file before it sends it.

    Attributes:
        url: Address of this very revision.
        size: Bytes.
        etag: For a large file the SHA-256 of its content.
        headers: To be sent when the file is asked for.
    """

    url: str
    size: int
    etag: str
    headers: dict[str, str]


class Metered:
    """A file that reports how much has been written to it; the one way to follow every version of the client."""

    def __init__(self, file: BinaryIO, total: int, progress: Progress | None) -> None:
        self.file, self.total, self.progress = file, total, progress
        self.stopped: BaseException | None = None

    def write(self, chunk: bytes) -> int:
        written = self.file.write(chunk)
        if self.progress:
            try:
                self.progress(self.file.tell(), self.total)
            except BaseException as stop:
                self.stopped = stop
                raise
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def fetch(name: str, folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Downloads a released file into ``folder`` and checks it; at once if a good one is there already.

    Under its own name the file appears only when it is whole and checked. A connection that breaks is taken up
    again, and so is the part that a failed or killed attempt left in ``folder/.fetch``.

    Args:
        name: Catalogue name, with or without ``.safetensors``.
        folder: Where to put it; made if it does not exist.
        progress: Called after each block of about 10 MB.

    Returns:
        The path of the file.

    Raises:
        ClearFileError: The name is not in the catalogue.
        FetchError: Offline mode, no network, gated or missing, wrong size or content, disk full, folder not writable,
            or somebody else is fetching the same file.
    """
    release = find_release(name)
    target = Path(folder) / release.name
    if target.is_file() and not problem(release, target):
        return target
    by_hand = f"to do it by hand, download {release.url} and save it as {target}"
    try:
        staging = target.parent / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        try:
            with alone(staging, release):
                announced = ask(release)
                part = staging / f"{release.name}.{hashlib.sha256(announced.etag.encode()).hexdigest()[:16]}.part"
                # The file has changed on the hub since these were begun.
                for stale in set(staging.glob(f"{release.name}.*.part")) - {part}:
                    stale.unlink()
                stream(announced, part, progress)
                check(release, announced, part)
                os.replace(part, target)
        finally:
            with suppress(OSError):  # not empty: a part that the next attempt continues
                staging.rmdir()
    except FetchError as error:
        raise FetchError(f"{release.name} was not fetched: {error}; {by_hand}.") from error.__cause__
    except OSError as error:
        raise FetchError(
            f"{release.name} was not fetched: {shown(error.strerror or error)} "
            f"({shown(error.filename or target.parent)}); {by_hand}."
        ) from error
    return target


def ask(release: Release) -> Announced:
    """Asks the hub for revision, size and ETag."""
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise FetchError("the package huggingface_hub is not installed") from error
    if constants.HF_HUB_OFFLINE:
        raise FetchError("HF_HUB_OFFLINE is set, so nothing is asked of the network; unset it and start again")
    try:
        found = get_hf_file_metadata(hf_hub_url(REPOSITORY, release.name))
    except Exception as error:
        if not of_network(error):
            raise
        raise FetchError(in_words(error)) from error
    if not found.etag or not found.size or not found.commit_hash:
        raise FetchError(f"{shown(constants.ENDPOINT)} did not answer like Hugging Face (a proxy or a log-in page?)")
    # Without "identity" a proxy may compress, and sizes and ranges would mean something else.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    return Announced(hf_hub_url(REPOSITORY, release.name, revision=found.commit_hash), found.size, found.etag, headers)


def stream(announced: Announced, part: Path, progress: Progress | None) -> None:
    """Appends to ``part`` until it has the announced size."""
    from huggingface_hub.file_download import http_get

    if length(part) > announced.size:
        part.unlink()
    need = announced.size - length(part)
    free = shutil.disk_usage(part.parent).free
    if free < need:
        raise FetchError(
            f"the disk is full: {need / 1e6:,.0f} MB more are needed in {part.parent.parent} and "
            f"{free / 1e6:,.0f} MB are free"
        )
    idle = 0
    while (have := length(part)) < announced.size:
        metered = None
        try:
            with open(part, "ab") as file:
                metered = Metered(file, announced.size, progress)
                http_get(
                    announced.url,
                    metered,
                    resume_size=have,
                    headers=announced.headers,
                    expected_size=announced.size,
                    displayed_filename=part.name.partition(".")[0],
                )
        except Exception as error:
            if not of_network(error) or (metered and error is metered.stopped):
                raise
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                part.unlink()
                raise FetchError(
                    f"the disk is full: {part.parent.parent} had no room for {announced.size / 1e6:,.0f} "
                    f"MB; what had come was removed"
                ) from error
            status = status_of(error)
            if length(part) > announced.size or status == 416:
                break
            idle = 0 if length(part) > have else idle + 1
            if status is not None or idle == IDLE_ATTEMPTS:
                # A plain OSError is the client's own complaint about the size.
                if type(error) is OSError and error.errno is None:
                    break
                raise FetchError(
                    f"{in_words(error)}; {length(part) / 1e6:,.0f} of {announced.size / 1e6:,.0f} MB are "
                    f"kept and the next attempt goes on from there"
                ) from error
            time.sleep(idle)
    if length(part) != announced.size:
        got = length(part)
        part.unlink()
        raise FetchError(
            f"it has the wrong size: the hub announced {announced.size} bytes and sent {got}; what had come was removed"
        )


def check(release: Release, announced: Announced, part: Path) -> None:
    """Removes ``part`` and says why unless it is the release, whole and as announced."""
    wrong = None
    if len(announced.etag) == 64 and sha256(part) != announced.etag.lower():
        wrong = "its content is not what the hub announced (SHA-256 differs)"
    wrong = wrong or problem(release, part)
    if wrong:
        part.unlink()
        raise FetchError(f"{wrong}; what had come was removed")


def problem(release: Release, path: Path) -> str | None:
    """Why the file at ``path`` is not this release; None if it is."""
    try:
        found = read_clear_file(path)
        found.fits(release.width, release.num_double, release.num_single)
    except ClearFileError as error:
        return str(error).rstrip(".")
    if found.down_factor != release.down_factor:
        return f"its down factor is {found.down_factor}, expected {release.down_factor}"
    return None


def in_words(error: Exception) -> str:
    """What an error of the client, of whatever version, means to a user."""
    status = status_of(error)
    if status in (401, 403):
        return (
            f"the hub refused it (HTTP {status}: gated, private or renamed); log in with `hf auth login` if your "
            f"account has access"
        )
    if status == 404:
        return f"the hub does not have it (HTTP 404); the repository {REPOSITORY} may have changed"
    if status is not None:
        return f"the hub answered with HTTP {status}; try again later"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set, so nothing is asked of the network; unset it and start again"
    return f"there is no connection to the hub, or it broke ({type(error).__name__})"


def status_of(error: Exception) -> int | None:
    """The HTTP status behind an error; None for one of the network."""
    return getattr(getattr(error, "response", None), "status_code", None)


def of_network(error: Exception) -> bool:
    """Whether an error may come from the network, disk or hub and not from a mistake in a program.

    The client sits on requests, httpx or httpx2, depending on its version; none of them is imported here.
    """
    return isinstance(error, OSError) or any(kind.__name__ in ("HTTPError", "InvalidURL") for kind in type(error).mro())


@contextmanager
def alone(staging: Path, release: Release) -> Iterator[None]:
    """Keeps two processes or clicks from writing one part file; a killed holder lets go."""
    try:
        from filelock import FileLock, Timeout  # a dependency of every huggingface_hub
    except ImportError as error:
        raise FetchError("the package huggingface_hub is not installed") from error
    lock = FileLock(staging / f"{release.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FetchError("it is already being fetched; wait for that to end") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            os.unlink(lock.lock_file)


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
