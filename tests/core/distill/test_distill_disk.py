"""A disk without room: said before the work, and no half file if it runs out all the same."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from clear_core.distill.disk import DiskFullError, check_space, is_full, no_half_file
from clear_core.distill.samples import write_sample


def test_too_little_room_is_told_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**10, 10**10, 2_500_000))
    check_space(tmp_path, 2_500_000, "3 samples")
    with pytest.raises(DiskFullError, match=r"^3 samples need 12\.0 GB in .*, and 2\.5 MB are free there; make room"):
        check_space(tmp_path, 12 * 10**9, "3 samples")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full_leaves_no_half_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, "it is full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DiskFullError, match=r"^the disk is full: 0000000\.safetensors was not written to "):
        write_sample(tmp_path, 0, torch.ones(4, 8, 8), torch.ones(3, 8), torch.ones(8))
    assert list(tmp_path.iterdir()) == []


def test_another_error_passes_and_leaves_no_half_file_either(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), no_half_file(tmp_path / "a.bin") as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"old"


def test_the_errors_of_libraries_that_write_by_themselves():
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    torn = "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"
    assert is_full(SafetensorError(full)) and is_full(RuntimeError(torn))
    assert not is_full(SafetensorError("I/O error: Permission denied (os error 13)"))
    assert not is_full(RuntimeError("out of memory")) and not is_full(OSError(errno.EACCES, "no"))
