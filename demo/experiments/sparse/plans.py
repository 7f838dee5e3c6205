"""What the laboratory compares, at which sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clear_core import ClearSpec

from ..subject import Subject
from ..windows import window_file
from .ways import Chosen, Dense, Square, Way, Window

CELLS = 4
"""Side in tokens of the overview's cells, as the node has them by default."""

NODE = Chosen(text=False)
"""The host's node by default, on a model that is not its video model: tau 1.3, without sinks."""


@dataclass(frozen=True)
class Size:
    """Pictures of one size.

    Attributes:
        side: In px.
        scenes: Number of drawn scenes, each with noise of its own.
        levels: Noise levels at which the model is called.
        radii: Of the windows, in tokens: an eighth, a quarter and a half of the side.
    """

    side: int
    scenes: int
    levels: tuple[float, ...]
    radii: tuple[int, ...]

    def ways(self, subject: Subject) -> list[Way]:
        """Rows of the size, those with a radius not fitted yet."""
        found: list[Way] = [Dense()]
        for radius in self.radii:
            found += [Window(radius), Window(radius, CELLS)]
            # Windows are distilled for some radii only.
            if window_file(ClearSpec(radius), subject.weights).is_file():
                found.append(Window(radius, on_distilled=True))
            found += [Square(radius), Chosen(radius), Chosen(radius, tiles=True)]
        middle = Chosen(self.radii[len(self.radii) // 2])
        by_threshold = [replace(NODE, text=True), replace(NODE, text=True, tiles=True)]
        return [*found, replace(middle, tail=False), NODE, *by_threshold]


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    sizes: tuple[Size, ...]


EXTENTS = {
    "full": Extent((Size(512, 2, (0.3, 0.8), (4, 8, 16)), Size(1024, 1, (0.6,), (8, 16, 32)))),
    "quick": Extent((Size(256, 1, (0.6,), (4,)),)),
}
