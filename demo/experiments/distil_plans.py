"""What the laboratory of distillation compares: models, windows, what is trained, and how long."""

from __future__ import annotations

from dataclasses import dataclass

from ..training import Stage
from .distil_flux2 import STAGES
from .distil_table import WHOLE

WHOLE_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Low rank usually takes 3 to 10 times the rate of whole weights."""


@dataclass(frozen=True)
class Method:
    """What is trained.

    Attributes:
        rank: Of low-rank additions; None trains whole weights.
        base: Precision of the frozen weights (``TrainConfig.base``).
        rates: Learning rates of the short trials; the one with the smallest error is taken. Empty: the rate that the
            same rank has on a plain base.
    """

    rank: int | None
    base: str = "plain"
    rates: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """A row's name."""
        what = WHOLE if self.rank is None else f"rank {self.rank}"
        return what if self.base == "plain" else f"{what}, base {self.base}"


@dataclass(frozen=True)
class Subject:
    """A model and what is distilled for it.

    Attributes:
        key: Of its files, and of ``distil_models.MODELS``.
        title: For people.
        side: Of the pictures, in px.
        radii: Of the windows, in tokens; the trials of rates take ``trial_radius``.
        guidance: Scale of teacher and student; other than 1 it takes two calls of SD3.
        batch: Samples of a step.
    """

    key: str
    title: str
    side: int
    radii: tuple[int, ...]
    trial_radius: int
    methods: tuple[Method, ...]
    guidance: float = 1.0
    batch: int = 4


SUBJECTS: tuple[Subject, ...] = (
    Subject(
        "flux",
        "tiny FLUX",
        side=512,
        radii=(8,),
        trial_radius=8,
        methods=(
            Method(None, rates=WHOLE_RATES),
            Method(4, rates=RATES[1:]),
            Method(16, rates=RATES),
            Method(64, rates=RATES),
            Method(16, "fp8"),
            Method(16, "nf4"),
        ),
        batch=2,
    ),
    Subject(
        "sd3",
        "tiny SD3",
        side=320,
        radii=(2, 4, 8),
        trial_radius=4,
        methods=(Method(16, rates=RATES[1:]),),
        guidance=2.0,
    ),
    Subject("flux2", "small FLUX.2", side=256, radii=(2, 4), trial_radius=4, methods=(Method(16, rates=RATES[1:]),)),
)
"""Sizes of the models' own training. At 256 px, the tiny FLUX's other one, a window of radius 8 sees nearly everything.
At sizes between it is a poor teacher: flow matching, in the loss, then asks for something else than it gives."""


@dataclass(frozen=True)
class Extent:
    """How much is computed.

    Attributes:
        steps, trial_steps: Of each distillation and of each trial of a rate.
        samples: Drawn scenes that all methods of a subject are trained on, in the same order.
        judged: Held-out scenes of the record's errors.
        compared: Other held-out scenes, by which rates are chosen.
        side, batch: For all subjects; None is the subject's own.
        stages: Of the small FLUX.2's training.
        compiled: Whether torch.compile makes that training faster.
    """

    steps: int
    trial_steps: int
    samples: int
    judged: int
    compared: int
    side: int | None = None
    batch: int | None = None
    stages: tuple[Stage, ...] = STAGES
    compiled: bool = True

    def side_of(self, subject: Subject) -> int:
        return self.side or subject.side

    def batch_of(self, subject: Subject) -> int:
        return self.batch or subject.batch


FULL = Extent(steps=120, trial_steps=30, samples=240, judged=16, compared=4)
QUICK = Extent(
    steps=2,
    trial_steps=1,
    samples=2,
    judged=1,
    compared=1,
    side=160,
    batch=1,
    stages=(Stage(2, ((64, 64, 2),), (1e-3, 1e-3)),),
    compiled=False,
)
"""Shows that all parts work; its figures say nothing."""
EXTENTS = {"full": FULL, "quick": QUICK}
