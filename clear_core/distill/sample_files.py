"""The names of samples in a folder."""

from __future__ import annotations

from pathlib import Path

from ..weights.filename import is_hidden


def sample_path(folder: Path, index: int) -> Path:
    """Path of one sample."""
    return folder / f"{index:07d}.safetensors"


def sample_paths(folder: Path) -> list[Path]:
    """The samples of a folder, in the order of their names; hidden files and companions of macOS are none."""
    return sorted(path for path in folder.glob("*.safetensors") if not is_hidden(path.name))
