"""What CLEARInspect says: the plain words, the advice, the lines for a bug report, and numbers in words."""

from __future__ import annotations

import importlib.util
import math
import platform
from dataclasses import replace

import pytest
import torch

from clear_core import ClearSpec
from clear_core.attention import explain_backend
from clear_core.inspection.facts import WeightsFacts
from clear_core.inspection.report import MARK, headline, report
from clear_core.inspection.units import memory_words, percent, significant, time_words
from clear_core.settings import ClearSettings
from tests.support.inspected import facts, quoted


def test_text_holds_what_a_bug_report_needs():
    settings = ClearSettings(
        ClearSpec(8, 4), 5.0, "on", "gather", start_percent=0.2, dense_blocks="0-3", min_tokens=9, controlnet="off"
    )
    inspected = replace(
        facts(),
        settings=settings,
        weights=WeightsFacts("w.safetensors", 0.7, "0123456789"),
        backend=("gather", "Because."),
        others=("2 LoRAs", "another"),
        stages="a to b",
        tiles="whole",
    )
    lines = quoted(report(inspected))
    head_dim, tokens = 128, 65536 + 512
    scale = math.sqrt(math.log(10 * tokens, 4608) / head_dim)
    assert lines["weights"] == "w.safetensors, strength 0.7, sha256 0123456789"
    assert (lines["ntk factor"], lines["ntk"]) == ("5 (set)", "constant")
    assert lines["attention scale"].startswith(f"{scale:.6f} (")
    assert lines["backend"] == "gather (Because.)" and lines["backend asked for"] == "gather"
    assert (lines["radius"], lines["down factor"], lines["dense blocks"]) == ("8", "4", "0-3")
    assert (lines["start percent"], lines["end percent"]) == ("0.2", "1")
    assert (lines["min tokens"], lines["controlnet"]) == ("9", "off")
    assert (lines["stages"], lines["tiles"], lines["other patches"]) == ("a to b", "whole", "2 LoRAs; another")
    assert lines["clear-flux"] == "0.1.0"
    share = 100 * inspected.row((4096, 4096)).pooled / inspected.row((4096, 4096)).dense
    assert f"{significant(share)} % of" in lines["work of a step"]


def test_plain_words_tell_the_circle_in_pixels():
    assert headline(facts(spec=ClearSpec(8))) == "Each part of the picture looks at a circle 256 px wide"
    assert "overview" in headline(facts(spec=ClearSpec(8, 4)))
    assert headline(facts(spec=None)) == headline(facts(256, ClearSpec(100)))


@pytest.mark.parametrize(
    ("inspected", "words"),
    [
        pytest.param(facts(spec=None), "CLEAR is not connected", id="no CLEAR"),
        pytest.param(facts(), "No distilled weights", id="no weights"),
        pytest.param(facts(1024, ClearSpec(32)), "save little or nothing", id="1K"),
        pytest.param(facts(256, ClearSpec(64)), "larger than the picture", id="covered"),
        pytest.param(facts(spec=ClearSpec(8, 4)), "square of the picture's area", id="pooled"),
        pytest.param(
            replace(facts(1024), settings=ClearSettings(ClearSpec(8), min_tokens=9000)), "min_tokens", id="inactive"
        ),
        pytest.param(
            replace(facts(), settings=ClearSettings(ClearSpec(8), end_percent=0.8)), "from 0 % to 80 %", id="part"
        ),
    ],
)
def test_what_to_expect_is_said_in_words(inspected, words):
    assert words in report(inspected).split(MARK)[0]


def test_advice_keeps_quiet_where_all_is_well():
    text = report(facts(weights=WeightsFacts("w", 1.0, "0"))).split(MARK)[0]
    assert "No distilled" not in text and "little" not in text and "not connected" not in text


def test_weights_at_no_strength_are_no_weights():
    def said(strength: float) -> str:
        return report(facts(weights=WeightsFacts("w.safetensors", strength, "0")))

    assert "picture will suffer" in said(0.0) and "picture will suffer" not in said(0.1)
    # Without any weights there is an overview: that is better than the weights' windows without the weights.
    assert "weights_name to none" in said(0.0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (time_words(0.0042), "4.2 ms"),
        (time_words(0.5), "0.5 s"),
        (time_words(89), "89 s"),
        (time_words(300), "5 min"),
        (time_words(7300), "2 h"),
        (memory_words(5 * 2**30), "5.0 GiB"),
        (memory_words(3 * 2**20), "3 MiB"),
        (percent(0.0272), "2.7 %"),
        (percent(1.0), "100 %"),
        (percent(1.2), "120 %"),
        (significant(1234), "1,200"),
        (significant(0.000123), "0.00012"),
        (significant(99.6), "100"),
        (significant(0), "0"),
    ],
    ids=lambda value: str(value),
)
def test_numbers_in_words(words, expected):
    assert words == expected


@pytest.mark.parametrize(
    ("system", "hip", "reason", "said"),
    [
        ("Windows", None, "FlexAttention is not used because Triton is not installed.", True),
        ("Windows", "6.4", "FlexAttention is not used because Triton is not installed.", False),
        ("Linux", None, "FlexAttention is not used because Triton is not installed.", False),
        ("Windows", None, "FlexAttention's compiled kernel works on cuda:0.", False),
        ("Windows", None, "Gathered tiles run everywhere.", False),
    ],
)
def test_windows_without_triton_is_told_what_it_would_give(system, hip, reason, said, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(torch.version, "hip", hip)
    text = report(facts(backend=("gather", reason))).split(MARK)[0]
    assert ("triton-windows" in text) is said
    if said:
        assert torch.__version__ in text and "installs nothing itself" in text


@pytest.mark.parametrize("capability", [(8, 9), (7, 5)], ids=str)
def test_triton_is_named_if_it_is_all_that_is_missing(capability, monkeypatch):
    """What installing it would not mend has another reason: on older cards it is the card."""
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backend = explain_backend(torch.device("cuda", 0), torch.bfloat16, 128, (256, 256), ClearSpec(16))
    assert backend[0] == "gather"
    assert ("triton-windows" in report(facts(backend=backend))) is (capability >= (8, 0))
