"""Values in messages: a user's text is on one line and short, however long it is."""

from __future__ import annotations

import pytest

from clear_core import ClearSpec
from clear_core.attention import check_backend
from clear_core.dense_blocks import parse_dense_blocks
from clear_core.layout import SequenceLayout
from clear_core.sdedit import plan_stages
from clear_core.settings import ClearSettings
from clear_core.weights import find_release
from clear_core.wording import quoted

LONG = "x\n" * 50_000


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("warp", "'warp'"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (None, "None"),
        (10**4301, "a whole number of 14288 bits"),
        (2**64, "18446744073709551616"),
    ],
    ids=["text", "number", "nan", "none", "4301 digits", "2**64"],
)
def test_a_value_is_told_as_python_writes_it(value, told):
    assert quoted(value) == told


DIGITS = "1" * 4301
TEXTS = {
    "dense_blocks": lambda text: parse_dense_blocks(text, 19, 38),
    "proportional_attention": lambda text: ClearSettings(ClearSpec(4), proportional_attention=text),
    "backend": check_backend,
    "stage_denoise": lambda text: plan_stages(64, 64, upscale_by=4, stage_denoise=text),
    "catalogue": find_release,
}
NUMBERS = {
    "min_tokens": lambda value: ClearSettings(ClearSpec(4), min_tokens=value),
    "radius": ClearSpec,
    "upscale_by": lambda value: plan_stages(64, 64, upscale_by=value),
    "grid": lambda value: SequenceLayout.of(64, value),
}


@pytest.mark.parametrize(
    ("taker", "value"),
    [
        *((taker, text) for taker in TEXTS.items() for text in (LONG, DIGITS)),
        *((taker, value) for taker in NUMBERS.items() for value in (LONG, -(10**4301))),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else f"{len(part)} characters" if isinstance(part, str) else "",
)
def test_no_message_repeats_a_long_value(taker, value):
    name, take = taker
    with pytest.raises(ValueError, match=name) as error:
        take(value)
    told = str(error.value)
    assert len(told) < 400 and told.isprintable() and told.endswith(".") and "set_int_max" not in told
