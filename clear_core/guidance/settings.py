"""What a user sets for guidance by a low-resolution result."""

from __future__ import annotations

from dataclasses import dataclass

from ..number_checks import check_number, check_percents
from ..wording import quoted
from .imax import SCHEDULES, Schedule

MOST_STRENGTH = 2.0
MOST_LEVEL = 8


@dataclass(frozen=True)
class GuideSettings:
    """I-Max's guidance.

    Attributes:
        schedule: One of :data:`SCHEDULES`.
        strength: Factor on the whole correction, 0 to 2; 0 is no guidance.
        level: Of the wavelet transform, 1 to 8: blocks of 2**level latent cells are guided as one.
        start_percent: Share of the sampling, 0 to 1, before which nothing is guided.
        end_percent: Share of the sampling, 0 to 1, after which nothing is guided; not before the start. Neither moves
            the schedule, which runs over all steps.

    Raises:
        ValueError: A value is out of range.
    """

    schedule: Schedule = "shift"
    strength: float = 1.0
    level: int = 1
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {quoted(self.schedule)}; expected one of {', '.join(SCHEDULES)}.")
        check_number("strength", self.strength, 0, MOST_STRENGTH)
        check_number("level", self.level, 1, MOST_LEVEL, whole=True)
        check_percents(self.start_percent, self.end_percent)
