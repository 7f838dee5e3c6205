"""What the trained comparison compares, and how long it trains."""

from __future__ import annotations

from dataclasses import dataclass

from clear_core import SequenceLayout, token_grid
from clear_core.layout import TOKEN_PIXELS

from ..baselines.attention import Attention
from ..baselines.linear import Linear
from ..baselines.matched import image_keys, nearest
from ..baselines.registry import KINDS
from ..baselines.swin import Swin

STRENGTH = 0.7
"""Of the SDEdit passes: so much noise that a layout can be lost."""


@dataclass(frozen=True)
class Row:
    """One attention and what it is trained by.

    Attributes:
        kind: A name in the registry of the baselines.
        distilled: Whether the two losses of the distillation are added to flow matching (paper, equations 4 to 6).
    """

    kind: str
    distilled: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}, distilled" if self.distilled else self.kind


ROWS = (*(Row(kind) for kind in KINDS), Row("CLEAR", True), Row("CLEAR pooled", True))
"""The paper trains all of them by flow matching alone, and CLEAR by distillation, too (its table 2 and figure 11).

Dense attention, trained in the same way, is the floor: training alone takes a model away from what it was.
"""


@dataclass(frozen=True)
class Extent:
    """How much is computed. All of it is the same for every row.

    Attributes:
        steps, trial_steps: Of each training, and of each trial of a rate.
        batch: Samples of a step.
        samples: Drawn scenes that are trained on.
        scenes: Held-out scenes of the record's velocity errors.
        pictures: The first of these that become pictures.
        compared: Other held-out scenes, by which rates are chosen.
        side: Of all pictures, in px.
        window: Side in tokens of the Swin window whose keys the others match; it divides the grid.
        rates: Learning rates that are tried.
        seeds: Each decides order of samples, noise and noise levels of one training.
        trial_seed: The same for the trials.
    """

    steps: int = 100
    trial_steps: int = 25
    batch: int = 2
    samples: int = 240
    scenes: int = 8
    pictures: int = 6
    compared: int = 4
    side: int = 512
    window: int = 8
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    trial_seed: int = 3

    @property
    def layout(self) -> SequenceLayout:
        """The image's tokens; those of text are the same for all rows, and left out."""
        return SequenceLayout(0, token_grid(self.side, self.side, TOKEN_PIXELS))

    def attention(self, kind: str) -> Attention:
        """An attention in the size that matches the keys of a Swin window, or its only size."""
        if not KINDS[kind].sizes(self.layout.grid):
            return KINDS[kind].paper
        return nearest(kind, self.layout, Swin(self.window).pairs(self.layout)).attention

    def keys(self, kind: str) -> float | None:
        """Image or compressed keys of an image query on average, in an unshifted block; None where there are no keys:
        linear attention sees one sum of all."""
        attention = self.attention(kind)
        return None if isinstance(attention, Linear) else image_keys(attention, self.layout)


# As many steps as 48 trainings have (36 of them in the record; the 48 trials count as 12), of 0.4 to 0.9 seconds of one
# core (measured), and 47 judgements of about 15: 4200 seconds of one core, 42 minutes of two at rest.
FULL = Extent()
QUICK = Extent(
    steps=2,
    trial_steps=1,
    batch=1,
    samples=4,
    scenes=1,
    pictures=1,
    compared=1,
    side=64,
    window=2,
    rates=(1e-4, 3e-4),
    seeds=(0, 1),
)
"""Shows that all parts work; its figures say nothing."""
EXTENTS = {"full": FULL, "quick": QUICK}
