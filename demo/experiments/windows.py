"""The windows that are distilled and judged, and their files."""

from __future__ import annotations

from pathlib import Path

from clear_core import ClearSpec
from clear_core.distill.outputs import file_name

RADII = (4, 8, 16)
SPECS = tuple(ClearSpec(radius, down) for down in (1, 4) for radius in RADII)

WINDOWS = Path(__file__).resolve().parents[1] / "tiny_flux" / "windows"


def window_file(spec: ClearSpec, folder: Path = WINDOWS) -> Path:
    """Where the distilled weights of a window lie."""
    return folder / file_name(spec)
