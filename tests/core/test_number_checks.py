"""Numbers of the core's settings: finite and in their range, or refused in one sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from clear_core import ClearSpec
from clear_core.distill.config import TrainConfig
from clear_core.number_checks import check_number
from clear_core.sdedit import Stage, TileLayout, plan_stages, sdedit_sigmas
from clear_core.settings import ClearSettings

NO_NUMBERS = [math.nan, math.inf, -math.inf, "1", None, [1], True, 1j]

SETTINGS = ClearSettings(ClearSpec(4))
STAGE = Stage(1, (16, 16), (32, 32), 0.5, 0)
CONFIG = TrainConfig(4)


def changed(settings, name):
    return lambda value: replace(settings, **{name: value})


TAKERS = {
    **{name: changed(SETTINGS, name) for name in ("ntk_factor", "start_percent", "end_percent", "min_tokens")},
    **{name: (lambda value, name=name: ClearSpec(**{"radius": 4, name: value})) for name in ("radius", "down_factor")},
    **{f"stage {name}": changed(STAGE, name) for name in ("number", "denoise", "seed")},
    **{
        f"training {name}": changed(CONFIG, name)
        for name in ("steps", "batch", "accumulation", "rate", "warm_up", "guidance", "clip", "seed")
    },
    **{
        f"plan {name}": (lambda value, name=name: plan_stages(64, 64, **{name: value}))
        for name in ("upscale_by", "stages", "denoise", "seed")
    },
    "height": lambda value: plan_stages(value, 64),
    "tile_height": lambda value: TileLayout.of_pixels((8, 8), value, 64, 16),
    "tile_overlap": lambda value: TileLayout.of_pixels((8, 8), 64, 64, value),
    "steps": lambda value: sdedit_sigmas(value, 0.5, 3.0),
    "strength": lambda value: sdedit_sigmas(4, value, 3.0),
    "shift": lambda value: sdedit_sigmas(4, 0.5, value),
}


# No rate is the optimizer's own, no guidance the family's.
OWN = [("training rate", None), ("training guidance", None)]
CASES = [(name, value) for value in NO_NUMBERS for name in TAKERS if (name, value) not in OWN]


@pytest.mark.parametrize("name, value", CASES, ids=repr)
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name.split()[-1]} is .*; expected ") as error:
        TAKERS[name](value)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "limits", "told"),
    [
        (2, {"least": 0, "most": 1}, "a number from 0 to 1"),
        (0, {"least": 0, "most": 1, "above": True}, "a number above 0 and up to 1"),
        (0, {"least": 1, "whole": True}, "a whole number of at least 1"),
        (1.5, {"least": 1, "whole": True}, "a whole number of at least 1"),
        (0.0, {"least": 0, "above": True}, "a number above 0"),
        (math.inf, {}, "a finite number"),
        (2**64, {"least": 0, "most": 2**64 - 1, "whole": True}, "from 0 to 18446744073709551615"),
        (-(10**400), {"least": 0}, "a number of at least 0"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_the_sentence_tells_the_range(value, limits, told):
    with pytest.raises(ValueError, match=f"x is .*; expected .*{told}"):
        check_number("x", value, **limits)


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), 10**400], ids=lambda value: str(value)[:9])
def test_numbers_of_all_kinds_pass(value):
    check_number("x", value, 0)
