"""``COMFYUI_FRONT_END``: which built front end ``dev.py test`` shows, and what it says of a wrong folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.environment import RefusedError
from tools.suites import find_front_end, front_end_arguments, front_end_version


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """As pip lays it out with ``--target``."""
    static = tmp_path / "comfyui_frontend_package" / "static"
    static.mkdir(parents=True)
    (static / "index.html").write_text("<html></html>")
    (tmp_path / "comfyui_frontend_package-1.58.1.dist-info").mkdir()
    return static.parent


def test_without_it_each_host_shows_its_own(monkeypatch):
    monkeypatch.delenv("COMFYUI_FRONT_END", raising=False)
    assert find_front_end() is None and front_end_arguments() == []


@pytest.mark.parametrize("inside", ["", "static"])
def test_the_package_and_its_built_files_are_both_taken(package, monkeypatch, inside):
    monkeypatch.setenv("COMFYUI_FRONT_END", str(package / inside))
    assert front_end_arguments() == ["--front-end-root", str(package / "static")]
    assert front_end_version(Path("any")) == "1.58.1"


def test_a_folder_without_a_front_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_FRONT_END", str(tmp_path))
    with pytest.raises(RefusedError, match=r"COMFYUI_FRONT_END names .*where there is no index.html; name the folder"):
        find_front_end()
