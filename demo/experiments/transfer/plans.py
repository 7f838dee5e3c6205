"""What is compared: ways to attend, sizes, conditions, numbers of strips, and how much of all that is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clear_core import ClearSpec

from ..subject import Subject
from ..windows import SPECS

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

Condition = Literal["grey", "tile"]
CONDITIONS: tuple[Condition, ...] = ("grey", "tile")

StripText = Literal["exact", "average"]
TEXTS: tuple[StripText, ...] = ("exact", "average")


@dataclass(frozen=True)
class Way:
    """How the model attends.

    Attributes:
        spec: The window; None is dense attention.
        distilled: Whether the weights are those distilled for the window.
    """

    spec: ClearSpec | None = None
    distilled: bool = False

    @property
    def window(self) -> str:
        """The window in words."""
        return "dense" if self.spec is None else str(self.spec)

    @property
    def weights(self) -> str:
        """The weights in words."""
        return "distilled" if self.distilled else "as they are"

    @property
    def name(self) -> str:
        """Window and weights, as a file's name has them."""
        return f"{self.window}, {self.weights}"

    def model(self, subject: Subject) -> FluxTransformer2DModel:
        """The subject's model, which attends so."""
        return subject.dense() if self.spec is None else subject.windowed(self.spec, self.distilled)


DENSE = Way()


@dataclass(frozen=True)
class Extent:
    """How much is run.

    Attributes:
        specs: The windows, each with and without distilled weights.
        scenes: Number of held-out scenes, each with noise of its own.
        base: Side in px of the base pictures.
        factors: Of the enlarged pictures' sides over the base's.
        strengths: Shares of the schedule that are run on an enlarged picture.
        steps: Of the whole schedule.
        control_side: Side in px of the pictures under a condition.
        control_steps: Training steps of each ControlNet.
        control_sizes: (height, width, pictures) of its steps, in turn.
        strips_side: Side in px of the pictures in strips.
        strips_spec: Their window; its weights are distilled.
        strips: Numbers of strips.
    """

    specs: tuple[ClearSpec, ...] = SPECS
    scenes: int = 4
    base: int = 256
    factors: tuple[int, ...] = (2, 4)
    strengths: tuple[float, ...] = (0.4, 0.7)
    steps: int = 20
    control_side: int = 512
    control_steps: int = 400
    control_sizes: tuple[tuple[int, int, int], ...] = ((256, 256, 8), (512, 512, 2))
    strips_side: int = 512
    strips_spec: ClearSpec = ClearSpec(8)
    strips: tuple[int, ...] = (2, 4, 8)

    @property
    def ways(self) -> list[Way]:
        """All ways, dense attention first."""
        return [DENSE, *(Way(spec, distilled) for spec in self.specs for distilled in (False, True))]

    @property
    def ways_under_control(self) -> list[Way]:
        """Those of the ControlNets: without pooled keys."""
        return [way for way in self.ways if way.spec is None or not way.spec.pools]


PARTS = ("enlarged", "control", "strips")
"""The three uses, as the record has them."""

EXTENTS = {
    "full": Extent(),
    "quick": Extent((ClearSpec(4),), 1, 64, (2,), (0.4,), 3, 64, 2, ((64, 64, 2),), 64, strips=(2,)),
}
