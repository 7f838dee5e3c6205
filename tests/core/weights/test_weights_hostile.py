"""Damaged and hostile files: each gives one sentence, and declared sizes allocate no memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import save_file

from clear_core.weights import ClearFileError, read_clear_file
from tests.support.damaged_files import FILES, GOLDEN, comfyui, local, pooled
from tests.support.peak_memory import grown


def test_there_are_forty_or_more():
    assert len(FILES) >= 40


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_one_sentence(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, fragment = FILES[case]
    path = tmp_path / "clear_local_8.safetensors"
    path.write_bytes(make())

    with pytest.raises(ClearFileError) as error:
        read_clear_file(path)

    message = str(error.value)
    assert fragment in message
    assert message.startswith("clear_local_8.safetensors ") and message.endswith(".") and len(message) < 700
    assert message.isprintable()
    assert not (tmp_path / "pwned").exists()


PATHS = {
    "missing": ("no.safetensors", "No such file"),
    "folder": (".", "is not a file"),
    "null_byte": ("clear\0.safetensors", "cannot be read"),
    "too_long": ("x" * 5000, "cannot be read"),
    "device": ("/dev/zero", "is not a file"),
    "pipe": ("pipe", "is not a file"),
    "link_to_itself": ("loop", "cannot be read"),
    "line_break": ("a\nb.safetensors", "a?b.safetensors cannot be read"),
}


@pytest.mark.parametrize("case", PATHS)
def test_a_bad_path_is_one_sentence(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, fragment = PATHS[case]
    if case == "pipe":
        getattr(os, "mkfifo", lambda path: pytest.skip("no pipes in the file system here"))(path)
    if case == "device" and not Path(path).exists():
        pytest.skip("no devices in the file system here")
    if case == "link_to_itself":
        os.symlink(path, path)
    with pytest.raises(ClearFileError) as error:
        read_clear_file(path)
    assert fragment in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 300


def test_nothing_is_allocated_that_is_merely_declared(tmp_path):
    for case, (make, _) in FILES.items():
        (tmp_path / f"{case}.safetensors").write_bytes(make())
    work = """
for path in glob.glob(sys.argv[1] + "/*"):
    try:
        read_clear_file(path)
    except ClearFileError:
        continue
    sys.exit(path)
"""
    warm = "import glob\nfrom clear_core.weights import ClearFileError, read_clear_file\nread_clear_file(sys.argv[2])"
    # The largest of the files has 1 MB; the smallest of the declared sizes is 99 MB.
    assert grown(warm, work, tmp_path, GOLDEN / "student_7_down1.safetensors") < 32e6


def test_the_untouched_files_are_accepted(tmp_path):
    """Without this test, a reader that refuses every file would pass the others."""
    for index, state in enumerate((local(), pooled(), comfyui(24))):
        save_file(state, tmp_path / f"{index}.safetensors")
        read_clear_file(tmp_path / f"{index}.safetensors").check_finite()
