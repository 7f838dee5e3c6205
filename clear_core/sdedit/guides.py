"""Which stages are guided by the picture that they enlarge, and how (I-Max, arXiv 2410.07536)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ..guidance import MOST_STRENGTH, SCHEDULES, GuideSettings
from ..number_checks import check_number
from ..wording import quoted
from .stages import Stage, of_stage, parse_numbers

AUTO = "auto"
OFF = "off"

GUIDES = (AUTO, OFF, *SCHEDULES)
"""``auto``: off up to 4096 px, above it :data:`AUTO_SCHEDULE`. The others are schedules of
:class:`~clear_core.guidance.GuideSettings`."""

GUIDED_ABOVE = 4096
"""Longer side in px up to which a picture holds together by itself; above it the method's author reports artifacts."""

AUTO_SCHEDULE = "shift"
"""What kept things and textures above the size of training in demo/experiments/guidance.json, where decay lost some."""

EXPECTED = f'numbers from 0 to {MOST_STRENGTH:g}, separated by commas, such as "1" or "0, 1"'


def guided_stages(stages: Iterable[Stage], guide: str, strength: str) -> tuple[Stage, ...]:
    """The stages with their guidance.

    Args:
        stages: Planned without.
        guide: One of :data:`GUIDES`.
        strength: Numbers from 0 to 2, separated by commas, one for each stage; the last one serves all later stages.
            Empty is 1.

    Raises:
        ValueError: A value is out of range; the message names it.
    """
    strengths = parse_numbers("guide_strength", strength, EXPECTED, check_guide_strength) or (1.0,)
    return tuple(
        replace(stage, guide=stage_guide(guide, of_stage(strengths, stage.number), stage.source, stage.size))
        for stage in stages
    )


def check_guide_strength(name: str, value: float) -> float:
    """``value``, if guidance can have it.

    Raises:
        ValueError: It is not from 0 to 2.
    """
    check_number(name, value, 0, MOST_STRENGTH)
    return value


def stage_guide(guide: str, strength: float, source: tuple[int, int], size: tuple[int, int]) -> GuideSettings | None:
    """The guidance of one stage, None if it has none.

    Args:
        guide: One of :data:`GUIDES`.
        strength: 0 is none.
        source: (height, width) in px of the picture that is enlarged.
        size: (height, width) in px of the result.

    Raises:
        ValueError: ``guide`` is no such word.
    """
    if guide not in GUIDES:
        raise ValueError(f"guide is {quoted(guide)}; expected one of {', '.join(GUIDES)}.")
    if guide == AUTO:
        guide = AUTO_SCHEDULE if max(size) > GUIDED_ABOVE else OFF
    if guide == OFF or not strength:
        return None
    return GuideSettings(guide, strength, guide_level(source, size))


def guide_level(source: tuple[int, int], size: tuple[int, int]) -> int:
    """The level whose blocks are as wide as the enlargement, so that nothing is guided that the source cannot know."""
    factor = max(size[0] / source[0], size[1] / source[1])
    # The tolerance keeps sides that are rounded to whole pixels from a level more.
    return max(1, math.ceil(math.log2(factor) - 0.01))
