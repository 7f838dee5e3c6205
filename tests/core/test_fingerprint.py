"""The short name of a weights file's content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from clear_core.weights import ClearFileError, fingerprint
from clear_core.weights.fingerprint import CHUNK


def test_it_begins_as_the_sha_256_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(CHUNK + 12345)
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    reports: list[tuple[int, int]] = []
    found = fingerprint(file, lambda done, total: reports.append((done, total)))
    assert found == hashlib.sha256(content).hexdigest()[:10]
    assert reports == [(CHUNK, len(content)), (len(content), len(content))]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    read: list[int] = []
    first = fingerprint(file, lambda done, total: read.append(done))
    assert fingerprint(file, lambda done, total: read.append(done)) == first and read == [3]
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # file systems may keep coarse times
    assert fingerprint(file) == hashlib.sha256(b"two").hexdigest()[:10] != first


def test_an_interrupt_leaves_no_half_read_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(os.urandom(CHUNK + 1))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fingerprint(file, interrupt)
    assert fingerprint(file) == hashlib.sha256(file.read_bytes()).hexdigest()[:10]


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClearFileError, match=r"gone.safetensors cannot be read: .*\.$"):
        fingerprint(tmp_path / "gone.safetensors")
