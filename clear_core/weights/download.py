"""Downloads a released file from Hugging Face by its catalogue name, only on request.

The client is huggingface_hub: its endpoint (``HF_ENDPOINT``), token, proxies and offline switch apply. Its
``hf_hub_download`` is not used: from version 1 on it discards a partial download when a connection or a process dies,
and these files have 3.6 GB. Its two steps (request size and ETag, then stream) write to a part file of ours instead,
which the next attempt continues.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .catalogue import REPOSITORY, Release, find_release, hub_address
from .client_errors import explanation, is_network_error, status_of
from .download_lock import download_lock
from .errors import ClearFileError, FetchError, printable
from .fingerprint import Progress, sha256
from .part_file import PartFile, PartWriter
from .reader import read_clear_file

logger = logging.getLogger(__name__)

# Folder of the part files, inside the target folder and so on the same volume: the last step is one rename.
STAGING = ".fetch"

# Consecutive attempts without a new byte before giving up.
IDLE_ATTEMPTS = 3

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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

    @property
    def has_token(self) -> bool:
        return any(name.lower() == "authorization" for name in self.headers)

    def without_token(self) -> RemoteFile:
        return replace(self, headers={n: v for n, v in self.headers.items() if n.lower() != "authorization"})


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
            with download_lock(staging / f"{release.name}.lock"):
                remote = head(release)
                part = PartFile(
                    staging / f"{release.name}.{hashlib.sha256(remote.etag.encode()).hexdigest()[:16]}.part"
                )
                # The file on the hub has changed since these were begun.
                for stale in staging.glob(f"{release.name}.*.part*"):
                    if not stale.name.startswith(part.path.name):
                        with suppress(OSError):
                            stale.unlink()
                stream(remote, part, progress)
                check(release, remote, part)
                part.publish(target)
        finally:
            with suppress(OSError):  # not empty: a part that the next attempt continues
                staging.rmdir()
    except FetchError as error:
        raise FetchError(f"{release.name} was not fetched: {error}; {by_hand}.") from error.__cause__
    except OSError as error:
        raise FetchError(
            f"{release.name} was not fetched: {printable(error.strerror or error)} "
            f"({printable(error.filename or target.parent, 300)}); {by_hand}."
        ) from error
    return target


def head(release: Release) -> RemoteFile:
    """Requests revision, size and ETag from the hub; without the token, if the hub refuses that for a public file."""
    with client_errors():
        try:
            from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
            from huggingface_hub.utils import build_hf_headers
        except ImportError as error:
            raise FetchError("the package huggingface_hub is not installed") from error
        if constants.HF_HUB_OFFLINE:
            raise FetchError("HF_HUB_OFFLINE is set, so the network is not used; unset it and start again")
        url = hf_hub_url(REPOSITORY, release.name)
        # Without "identity" a proxy may compress; sizes and ranges would then count compressed bytes.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        remote = RemoteFile(url, 0, "", headers)
        try:
            found = get_hf_file_metadata(url)
        except Exception as error:
            if status_of(error) not in (401, 403) or not remote.has_token:
                raise
            try:
                found = get_hf_file_metadata(url, token=False)
            except Exception:  # Not public: the first answer is the one that helps.
                raise FetchError(explanation(error, token_sent=True)) from error
            remote = anonymous(remote, error)
        if not found.etag or not found.size or not found.commit_hash:
            raise FetchError(f"{printable(hub_address())} did not answer like Hugging Face (a proxy or a log-in page?)")
        url = hf_hub_url(REPOSITORY, release.name, revision=found.commit_hash)
        return replace(remote, url=url, size=found.size, etag=found.etag)


def anonymous(remote: RemoteFile, error: Exception) -> RemoteFile:
    """``remote`` without the token that the hub refused; the log says so."""
    logger.warning(
        "CLEAR: the hub refused the token (HTTP %s: expired or not valid); the file is public and is fetched without.",
        status_of(error),
    )
    return remote.without_token()


@contextmanager
def client_errors() -> Generator[None, None, None]:
    """Turns whatever the client raises into a ``FetchError`` of one sentence."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        raise FetchError(explanation(error)) from error


def silence_client() -> None:
    """Turns the client's own bars off, which end on many lines in a log file."""
    with suppress(ImportError):  # ``fetch`` says that it is missing.
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def stream(remote: RemoteFile, part: PartFile, progress: Progress | None) -> None:
    """Appends to ``part`` until it has the announced size."""
    from huggingface_hub.file_download import http_get

    part.restore()
    if part.length > remote.size:
        part.discard()
    check_space(remote.size - part.length, part)
    idle = 0
    while (have := part.length) < remote.size:
        file = None
        try:
            with PartWriter(part, remote.size, progress) as file:
                http_get(
                    remote.url,
                    file,
                    resume_size=have,
                    headers=remote.headers,
                    expected_size=remote.size,
                    displayed_filename=part.path.name.partition(".")[0],
                )
            break  # Also if the client wrote by name (hf_transfer) and nothing went through ``file``.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                part.discard()
                raise FetchError(
                    f"the disk is full: {part.path.parent.parent} had no room for {remote.size / 1e6:,.0f} "
                    f"MB; the part file was removed"
                ) from error
            if file is None or error is file.stopped:
                raise
            part.restore()
            status = status_of(error)
            if part.length > remote.size or status == 416:
                break
            if status in (401, 403) and remote.has_token:
                remote = anonymous(remote, error)
                continue
            idle = 0 if part.length > have else idle + 1
            if status is not None or idle == IDLE_ATTEMPTS or not is_network_error(error):
                # A plain OSError is the client's own error about the size.
                if type(error) is OSError and error.errno is None:
                    break
                raise FetchError(explanation(error) + kept(part, remote)) from error
            time.sleep(idle)
    if part.size() != remote.size:
        got = part.size()
        part.discard()
        raise FetchError(
            f"it has the wrong size: the hub announced {remote.size} bytes and sent {got}; the part file was removed"
        )


def check_space(need: int, part: PartFile) -> None:
    """Raises a ``FetchError`` if the drive says that it has no room for ``need`` more bytes."""
    try:
        free = shutil.disk_usage(part.path.parent).free
    except OSError:  # Some network drives do not know.
        return
    if free < need:
        raise FetchError(
            f"the disk is full: {need / 1e6:,.0f} MB more are needed in {part.path.parent.parent} and "
            f"{free / 1e6:,.0f} MB are free"
        )


def kept(part: PartFile, remote: RemoteFile) -> str:
    """The end of the sentence about a broken download; a part file with nothing in it is removed."""
    if not part.length:
        part.discard()
        return ""
    return f"; {part.length / 1e6:,.0f} of {remote.size / 1e6:,.0f} MB are kept and the next attempt goes on from there"


def check(release: Release, remote: RemoteFile, part: PartFile) -> None:
    """Removes ``part`` and raises the reason, unless it is the release, whole and as announced."""
    wrong = None
    found = sha256(part.path)
    if len(remote.etag) == 64 and found != remote.etag.lower():
        wrong = "its content is not what the hub announced (SHA-256 differs)"
    elif part.length == remote.size and found != part.digest.hexdigest():
        wrong = "its content changed while it was written; is another program writing it?"
    wrong = wrong or problem(release, part.path)
    if wrong:
        part.discard()
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
