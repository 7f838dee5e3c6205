"""The windows that are distilled and judged, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clear_core import ClearSpec
from clear_core.distill.outputs import file_name

RADII = (4, 8, 16)
SPECS = tuple(ClearSpec(radius, down) for down in (1, 4) for radius in RADII)

WINDOWS = Path(__file__).resolve().parents[1] / "tiny_flux" / "windows"


def window_file(spec: ClearSpec, folder: Path = WINDOWS) -> Path:
    """Where the distilled weights of a window lie."""
    return folder / file_name(spec)


@dataclass(frozen=True)
class WindowRecipe:
    """How a committed window was distilled.

    Attributes:
        steps: Number of steps.
        rate: Learning rate at their start.
        sides: Of the samples in px, in turn.
    """

    steps: int = 60
    rate: float = 3e-4
    sides: tuple[int, ...] = (512, 512, 384)


def recipe_of(spec: ClearSpec) -> WindowRecipe:
    """The demo's own window goes to 1024 px and saw that size; wide windows lose what they have at a large rate."""
    if spec == ClearSpec(8):
        return WindowRecipe(200, sides=(512, 384, 1024))
    return WindowRecipe(rate=5e-5 if spec.radius == 16 else 3e-4)
