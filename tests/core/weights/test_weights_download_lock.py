"""Locks on drives that cannot lock, and clean-ups that fail: the file is fetched, or the true cause is said."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from pathlib import Path

import pytest

from clear_core.weights import FetchError
from clear_core.weights.download_lock import download_lock
from tests.support.hub import NAME
from tests.support.hub_client import SMALL, Client, left

pytest.importorskip("huggingface_hub")
fcntl = pytest.importorskip("fcntl")
if not Path("/proc/self/fd").exists():
    pytest.skip("the tests find a lock's path in /proc", allow_module_level=True)

REAL = fcntl.flock

# The client's flock fails in the folder of the part files as FLOCK says: "ENOLCK" always, "release ENOLCK" at the end.
FAULTY = """
import errno, fcntl
real = fcntl.flock
def flock(fd, operation):
    *when, code = os.environ.get("FLOCK", "").split() or [""]
    here = code and ".fetch" in os.readlink(f"/proc/self/fd/{fd}")
    if here and (not when or operation & fcntl.LOCK_UN):
        raise OSError(getattr(errno, code), "a network drive")
    return real(fd, operation)
fcntl.flock = flock
"""

CODES = ["EOPNOTSUPP", "ENOLCK", "EIO", "ENOSYS", "EAGAIN"]


@pytest.fixture(scope="module")
def client(stand_in, tmp_path_factory):
    with Client(stand_in.endpoint, tmp_path_factory.mktemp("client") / "home", FAULTY) as client:
        yield client


@pytest.fixture
def without_locks(folder, monkeypatch):
    """Makes every lock under the folder fail with a code; "EAGAIN" looks as if each one were held."""
    folder.mkdir(parents=True)

    def fail(code: str) -> Path:
        def flock(fd, operation):
            if str(folder) in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(getattr(errno, code), "a network drive")
            return REAL(fd, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        return folder / f"{NAME}.lock"

    return fail


@pytest.mark.parametrize("fault", [*CODES, "release ENOLCK", "release EIO"])
def test_a_file_is_fetched_where_the_drive_cannot_lock(folder, hub, client, fault):
    assert client.fetch(folder, FLOCK=fault).get("path") == str(folder / NAME)
    assert (folder / NAME).read_bytes() == SMALL and os.listdir(folder) == [NAME]


@pytest.mark.parametrize("code", CODES)
def test_downloads_of_one_machine_still_wait_for_each_other(without_locks, caplog, code):
    path = without_locks(code)
    for _ in range(2):
        with (
            caplog.at_level(logging.WARNING),
            download_lock(path),
            pytest.raises(FetchError, match="already being fetched"),
            download_lock(path),
        ):
            pass
    assert os.listdir(path.parent) == []
    # ENOSYS is known to newer versions of filelock, which then use another way to lock.
    said = [record.getMessage() for record in caplog.records if "no file can be locked in" in record.getMessage()]
    assert len(said) == 1 or (code == "ENOSYS" and not said)


def test_a_lock_that_is_held_is_not_taken_for_a_drive_without_locks(folder):
    folder.mkdir(parents=True)
    path = folder / f"{NAME}.lock"
    with download_lock(path), pytest.raises(FetchError, match="already being fetched"), download_lock(path):
        pass
    with download_lock(path):
        pass
    assert os.listdir(folder) == []


def test_an_old_part_that_cannot_be_removed_does_not_stop_a_download(folder, hub, client):
    """A folder of a part's name stands for a file that another program holds open."""
    (folder / ".fetch" / f"{NAME}.0123456789abcdef.part").mkdir(parents=True)
    assert client.fetch(folder).get("path") == str(folder / NAME)
    assert (folder / NAME).read_bytes() == SMALL and left(folder) == {NAME: len(SMALL)}


def test_a_part_that_cannot_be_written_is_said_and_not_called_a_broken_connection(folder, hub, client):
    etag = hub.announced["X-Linked-Etag"].strip('"')
    (folder / ".fetch" / f"{NAME}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part").mkdir(parents=True)
    answer = client.fetch(folder)
    assert "Is a directory" in answer["error"] and ".part" in answer["error"] and "connection" not in answer["error"]
