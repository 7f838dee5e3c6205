"""Downloads a released file from Hugging Face by its catalogue name, only on request.

The client is huggingface_hub: its endpoint (``HF_ENDPOINT``), token, proxies and offline switch apply. Its
``hf_hub_download`` is not used: from version 1 on it discards a partial download when a connection or a process dies,
and these files have 3.6 GB. Its two steps (request size and ETag, then stream) write to a part file of ours instead,
which the next attempt continues.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .catalogue import REPOSITORY, Release, find_release
from .errors import ClearFileError, printable
from .fingerprint import Progress, sha256
from .reader import read_clear_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Folder of the part files, inside the target folder and so on the same volume: the last step is one rename.
STAGING = ".fetch"

# Consecutive attempts without a new byte before giving up.
IDLE_ATTEMPTS = 3

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchError(RuntimeError):
    """A download failed; the message is one line that says why and what to do by hand."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub, as the hub announces it.

    Attributes:
        url: Address of one revision.
        size: Bytes.
        etag: SHA-256 of the content, if the file is large.
        headers: Headers for the request of the file.
    """

    url: str
    size: int
    etag: str
    headers: dict[str, str]


class ProgressFile(io.BufferedWriter):
    """A part file that reports its length after each write; this follows every version of the client.

    Attributes:
        stopped: The exception that the progress callback raised, to tell it from one of the network.
    """

    def __init__(self, path: Path, total: int, progress: Progress | None) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self.total, self.progress = total, progress
        self.stopped: BaseException | None = None

    def write(self, buffer: ReadableBuffer, /) -> int:
        written = super().write(buffer)
        if self.progress:
            try:
                self.progress(self.tell(), self.total)
            except BaseException as stop:
                self.stopped = stop
                raise
        return written


def fetch(name: str, folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Downloads a released file into ``folder`` and checks it; at once if a good one is there already.

    The file appears under its own name only once it is whole and checked. A broken connection is continued, and so
    is the part file of a failed or killed attempt in ``folder/.fetch``.

    Args:
        name: Catalogue name, with or without ``.safetensors``.
        folder: Target folder; created if it does not exist.
        progress: Called after each block of about 10 MB with (bytes on disk, bytes in all); if it raises, the
            download stops and can be continued later.

    Returns:
        The path of the file.

    Raises:
        ClearFileError: The name is not in the catalogue.
        FetchError: Offline mode, no network, gated or missing, wrong size or content, disk full, folder not writable,
            or another process is downloading the same file.
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
            with download_lock(staging, release):
                remote = head(release)
                part = staging / f"{release.name}.{hashlib.sha256(remote.etag.encode()).hexdigest()[:16]}.part"
                # The file on the hub has changed since these were begun.
                for stale in set(staging.glob(f"{release.name}.*.part")) - {part}:
                    stale.unlink()
                stream(remote, part, progress)
                check(release, remote, part)
                os.replace(part, target)
        finally:
            with suppress(OSError):  # not empty: a part that the next attempt continues
                staging.rmdir()
    except FetchError as error:
        raise FetchError(f"{release.name} was not fetched: {error}; {by_hand}.") from error.__cause__
    except OSError as error:
        raise FetchError(
            f"{release.name} was not fetched: {printable(error.strerror or error)} "
            f"({printable(error.filename or target.parent)}); {by_hand}."
        ) from error
    return target


def head(release: Release) -> RemoteFile:
    """Requests revision, size and ETag from the hub."""
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise FetchError("the package huggingface_hub is not installed") from error
    if constants.HF_HUB_OFFLINE:
        raise FetchError("HF_HUB_OFFLINE is set, so the network is not used; unset it and start again")
    try:
        found = get_hf_file_metadata(hf_hub_url(REPOSITORY, release.name))
    except Exception as error:
        if not is_network_error(error):
            raise
        raise FetchError(explanation(error)) from error
    if not found.etag or not found.size or not found.commit_hash:
        raise FetchError(
            f"{printable(constants.ENDPOINT)} did not answer like Hugging Face (a proxy or a log-in page?)"
        )
    # Without "identity" a proxy may compress; sizes and ranges would then count compressed bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    return RemoteFile(hf_hub_url(REPOSITORY, release.name, revision=found.commit_hash), found.size, found.etag, headers)


def stream(remote: RemoteFile, part: Path, progress: Progress | None) -> None:
    """Appends to ``part`` until it has the announced size."""
    from huggingface_hub.file_download import http_get

    if size_on_disk(part) > remote.size:
        part.unlink()
    need = remote.size - size_on_disk(part)
    free = shutil.disk_usage(part.parent).free
    if free < need:
        raise FetchError(
            f"the disk is full: {need / 1e6:,.0f} MB more are needed in {part.parent.parent} and "
            f"{free / 1e6:,.0f} MB are free"
        )
    idle = 0
    while (have := size_on_disk(part)) < remote.size:
        file = None
        try:
            with ProgressFile(part, remote.size, progress) as file:
                http_get(
                    remote.url,
                    file,
                    resume_size=have,
                    headers=remote.headers,
                    expected_size=remote.size,
                    displayed_filename=part.name.partition(".")[0],
                )
        except Exception as error:
            if not is_network_error(error) or (file and error is file.stopped):
                raise
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                part.unlink()
                raise FetchError(
                    f"the disk is full: {part.parent.parent} had no room for {remote.size / 1e6:,.0f} "
                    f"MB; the part file was removed"
                ) from error
            status = status_of(error)
            if size_on_disk(part) > remote.size or status == 416:
                break
            idle = 0 if size_on_disk(part) > have else idle + 1
            if status is not None or idle == IDLE_ATTEMPTS:
                # A plain OSError is the client's own error about the size.
                if type(error) is OSError and error.errno is None:
                    break
                raise FetchError(
                    f"{explanation(error)}; {size_on_disk(part) / 1e6:,.0f} of {remote.size / 1e6:,.0f} MB are "
                    f"kept and the next attempt goes on from there"
                ) from error
            time.sleep(idle)
    if size_on_disk(part) != remote.size:
        got = size_on_disk(part)
        part.unlink()
        raise FetchError(
            f"it has the wrong size: the hub announced {remote.size} bytes and sent {got}; the part file was removed"
        )


def check(release: Release, remote: RemoteFile, part: Path) -> None:
    """Removes ``part`` and raises the reason, unless it is the release, whole and as announced."""
    wrong = None
    if len(remote.etag) == 64 and sha256(part) != remote.etag.lower():
        wrong = "its content is not what the hub announced (SHA-256 differs)"
    wrong = wrong or problem(release, part)
    if wrong:
        part.unlink()
        raise FetchError(f"{wrong}; the part file was removed")


def problem(release: Release, path: Path) -> str | None:
    """The reason why the file at ``path`` is not this release; None if it is."""
    try:
        found = read_clear_file(path)
        found.fits(release.width, release.num_double, release.num_single)
    except ClearFileError as error:
        return str(error).rstrip(".")
    if found.down_factor != release.down_factor:
        return f"its down factor is {found.down_factor}, expected {release.down_factor}"
    return None


def explanation(error: Exception) -> str:
    """User text for an error of any version of the client."""
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
        return "HF_HUB_OFFLINE is set, so the network is not used; unset it and start again"
    return f"there is no connection to the hub, or it broke ({type(error).__name__})"


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error; None without an HTTP response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_network_error(error: Exception) -> bool:
    """Whether an error may come from the network, disk or hub, not from a bug.

    The client uses requests, httpx or httpx2, depending on its version; none of them is imported here.
    """
    return isinstance(error, OSError) or any(kind.__name__ in ("HTTPError", "InvalidURL") for kind in type(error).mro())


@contextmanager
def download_lock(staging: Path, release: Release) -> Generator[None, None, None]:
    """Keeps two processes or clicks from writing one part file; it is released if its process dies."""
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


def size_on_disk(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0
