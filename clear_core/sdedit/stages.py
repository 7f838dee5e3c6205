"""Enlargement in stages: sizes, strengths and seeds, planned before anything runs.

Source: the high-resolution recipe of the paper (enlarge, noise, denoise, repeat per doubling).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..families import FLUX1
from ..frame_units import FrameUnits
from ..guidance import GuideSettings
from ..number_checks import check_number
from ..wording import quoted

LARGEST_FACTOR = 8.0
MOST_PER_STAGE = 2.0
SEEDS = 2**64

STRENGTHS = 'numbers above 0 to 1, separated by commas, such as "0.7, 0.5"'


@dataclass(frozen=True)
class Stage:
    """One pass of enlarge, encode, noise, denoise, decode.

    Attributes:
        number: 1 for the first.
        source: (height, width) in px of the input image.
        size: (height, width) in px of the output image.
        denoise: Strength of the pass, above 0 and up to 1.
        seed: Seed of the noise.
        guide: Guidance by the enlarged input image; None for none.
        units: How the model's frame is made.

    Raises:
        ValueError: A value is out of range.
    """

    number: int
    source: tuple[int, int]
    size: tuple[int, int]
    denoise: float
    seed: int
    guide: GuideSettings | None = None
    units: FrameUnits = FLUX1.units

    def __post_init__(self) -> None:
        for name, value in (("number", self.number), ("height", self.size[0]), ("width", self.size[1])):
            check_number(name, value, 1, whole=True)
        check_number("denoise", self.denoise, 0, 1, above=True)
        check_number("seed", self.seed, 0, SEEDS - 1, whole=True)

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) in px of the sampled image: ``size`` padded up to whole units."""
        return self.grid[0] * self.units.pixels, self.grid[1] * self.units.pixels

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of units."""
        return self.units.grid(*self.size)

    @property
    def tokens(self) -> int:
        """Image tokens of the whole frame."""
        return self.units.tokens(self.grid)

    @property
    def is_guided_from_noise(self) -> bool:
        """Whether it is I-Max's own recipe: pure noise under the shift schedule."""
        return self.denoise >= 1 and self.guide is not None and self.guide.schedule == "shift"

    @property
    def enlarges(self) -> bool:
        """Whether the output is larger than the input."""
        return self.size != self.source


def plan_stages(
    height: int,
    width: int,
    *,
    upscale_by: float = 2.0,
    stages: int = 0,
    denoise: float = 0.5,
    stage_denoise: str = "",
    seed: int = 0,
    units: FrameUnits = FLUX1.units,
) -> tuple[Stage, ...]:
    """The stages from an image to its enlargement, each by the same factor.

    Args:
        height, width: Size of the image in px.
        upscale_by: Factor on both sides, 1 to 8; 1 redraws the image at its own size.
        stages: Number of stages; 0 takes the fewest that enlarge at most twice each.
        denoise: Strength if there is one stage, or if ``stage_denoise`` is empty.
        stage_denoise: Strengths of several stages, above 0 and up to 1, separated by commas; the last one serves
            all later stages, surplus ones are ignored.
        seed: Seed of the first stage's noise; every later stage adds 1.
        units: How the model's frame is made.

    Raises:
        ValueError: A value is out of range; the message names it.
    """
    for name, value in (("height", height), ("width", width)):
        check_number(f"the picture's {name}", value, 1, whole=True)
    check_number("upscale_by", upscale_by, 1, LARGEST_FACTOR)
    check_number("stages", stages, 0, whole=True)
    check_number("seed", seed, 0, SEEDS - 1, whole=True)
    # The tolerance keeps log2(8) from rounding up to a fourth stage.
    count = stages or max(1, math.ceil(math.log(upscale_by, MOST_PER_STAGE) - 1e-9))
    given = parse_numbers("stage_denoise", stage_denoise, STRENGTHS, check_strength) if count > 1 else ()
    strengths = given or (check_strength("denoise", denoise),)

    planned, source = list[Stage](), (height, width)
    for number in range(1, count + 1):
        factor = upscale_by ** (number / count)
        size = (round(height * factor), round(width * factor))
        strength, noise = of_stage(strengths, number), (seed + number - 1) % SEEDS
        planned.append(Stage(number, source, size, strength, noise, units=units))
        source = size
    return tuple(planned)


def of_stage(values: tuple[float, ...], number: int) -> float:
    """The value of a stage: its own, or the last one."""
    return values[min(number, len(values)) - 1]


def parse_numbers(name: str, text: str, expected: str, check: Callable[[str, float], float]) -> tuple[float, ...]:
    """Numbers separated by commas; none from an empty text.

    Args:
        name: Of the setting.
        text: As the user typed it.
        expected: What the message asks for.
        check: Refuses a number by a ValueError.

    Raises:
        ValueError: A part is no such number.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    numbers: list[float] = []
    for part in parts:
        try:
            numbers.append(check(name, float(part)))
        except ValueError:
            raise ValueError(f"{name} is {quoted(text)}; expected {expected}.") from None
    return tuple(numbers)


def check_strength(name: str, value: float) -> float:
    """``value``, if it is above 0 and at most 1.

    Raises:
        ValueError: It is not.
    """
    check_number(name, value, 0, 1, above=True)
    return value
