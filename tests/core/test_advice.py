"""The line on the nodes: its figures against the paper's, and a warning exactly where one is due."""

from __future__ import annotations

import pytest

from clear_core import ClearSpec, SequenceLayout
from clear_core.effective import Effective
from clear_core.families import FLUX1, ModelShape
from clear_core.inspection.cost_line import cost_line, layout_of
from clear_core.settings import ClearSettings

FLUX = ModelShape.usual(FLUX1)

SIZES = {"1K": (1024, 1024), "2 MP": (2048, 1024), "2K": (2048, 2048), "4K": (4096, 4096), "8K": (8192, 8192)}

# TFLOP per layer in the paper's table 1: dense, then by radius, to two or three digits.
PAPER = {
    "2K": (3.51, {8: 0.25, 16: 0.35, 32: 0.72}),
    "4K": (53.6, {8: 0.98, 16: 1.43, 32: 3.14}),
    "8K": (847.7, {8: 3.92, 16: 5.79, 32: 13.1}),
}


@pytest.mark.parametrize("radius", [8, 16, 32])
@pytest.mark.parametrize("name", PAPER)
def test_the_share_is_the_papers(name, radius):
    dense, windows = PAPER[name]
    effective = Effective.of(ClearSettings(ClearSpec(radius)), FLUX, layout_of(FLUX, *SIZES[name]))
    assert effective.attention_share == pytest.approx(windows[radius] / dense, rel=0.025)


def test_dense_blocks_add_their_cost_and_do_not_slow_the_windows():
    """30 of 57 blocks dense: about 54 % of dense attention, and still much faster than it."""
    line = cost_line(ClearSettings(ClearSpec(16), dense_blocks="0-29"), FLUX, SIZES["4K"])
    assert "54 % of dense attention" in line and "slower" not in line
    windows = float(said_share(cost_line(ClearSettings(ClearSpec(16)), FLUX, SIZES["4K"])))
    assert float(said_share(line)) == pytest.approx(100 * 30 / 57 + windows * 27 / 57, abs=0.5)


def said_share(line: str) -> str:
    return line.split("tokens, ")[1].split(" %")[0]


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        pytest.param(ClearSettings(ClearSpec(16), dense_blocks="0-56"), "4K", "dense_blocks", id="all blocks"),
        pytest.param(ClearSettings(ClearSpec(64 * 2)), "1K", "covers the whole picture", id="covered"),
        pytest.param(ClearSettings(ClearSpec(16), min_tokens=4097), "1K", "min_tokens", id="min_tokens"),
    ],
)
def test_without_windows_the_line_says_why(settings, name, reason):
    line = cost_line(settings, FLUX, SIZES[name], has_weights=False)
    assert "dense attention: " in line and reason in line
    assert not any(word in line for word in ("%", "slower", "pay", "weights"))


def test_sizes_without_windows_are_named_at_an_unknown_size():
    line = cost_line(ClearSettings(ClearSpec(16), min_tokens=5000), FLUX, None)
    assert line.startswith("10 % at 2K, 2.7 % at 4K of dense attention · dense at 1K")
    assert "pay" not in line
    assert cost_line(ClearSettings(ClearSpec(16), dense_blocks="0-56"), FLUX, None) == (
        "dense attention: dense_blocks names every block"
    )


def test_tokens_and_text_are_the_family_s():
    assert layout_of(FLUX, 1024, 512) == SequenceLayout(512, (32, 64))


@pytest.mark.parametrize(
    "size, tokens",
    [((1024, 1024), "4,096"), ((1344, 768), "4,032"), ((1000, 600), "2,394"), ((5376, 3072), "64,512")],
    ids=str,
)
def test_tokens_of_a_size(size, tokens):
    """A side that is no multiple of 16 is padded to whole tokens."""
    assert cost_line(ClearSettings(ClearSpec(16)), FLUX, size).startswith(f"{size[0]} x {size[1]}: {tokens} tokens, ")


@pytest.mark.parametrize(
    "spec, name, weights, said",
    [
        (ClearSpec(32), "1K", True, ("slower",)),
        (ClearSpec(16), "1K", True, ("does not pay",)),
        (ClearSpec(32), "2K", True, ()),
        (ClearSpec(16), "2 MP", True, ()),
        (ClearSpec(16), "4K", True, ()),
        (ClearSpec(16), "4K", False, ("training-free: picture suffers",)),
        (ClearSpec(16, 4, overview=True), "4K", False, ("training-free hybrid", "quadratic")),
        (ClearSpec(8, 4), "4K", True, ("quadratic",)),
        (ClearSpec(8, 4), "1K", False, ("does not pay", "training-free: picture suffers", "quadratic")),
        (None, "4K", True, ("slow here", "no windows")),
        (None, "1K", True, ("no windows",)),
    ],
    ids=lambda value: str(value),
)
def test_warnings(spec, name, weights, said):
    line = cost_line(spec and ClearSettings(spec), FLUX, SIZES[name], has_weights=weights)
    free = ("training-free: picture suffers", "training-free hybrid")
    known = ("slower", "slow here", "does not pay", *free, "quadratic", "no windows")
    assert tuple(word for word in known if word in line) == said
    assert "\n" not in line


def test_an_unknown_size_is_told_for_three():
    line = cost_line(ClearSettings(ClearSpec(16)), FLUX, None)
    assert line.startswith("33 % at 1K, 10 % at 2K, 2.7 % at 4K of dense attention · does not pay at 1K")
    assert "tokens" not in line
    assert "slower than dense at 1K and 2K" in cost_line(ClearSettings(ClearSpec(64)), FLUX, None)
    wide = cost_line(ClearSettings(ClearSpec(100)), FLUX, None)
    assert "slower than dense at 2K" in wide and "dense at 1K" in wide


@pytest.mark.parametrize("size", [None, SIZES["4K"]], ids=["unknown size", "4K"])
def test_a_part_of_the_sampling_is_named(size):
    assert "20 % to 75 % of the sampling" in cost_line(
        ClearSettings(ClearSpec(16), start_percent=0.2, end_percent=0.75), FLUX, size
    )
    assert "sampling" not in cost_line(ClearSettings(ClearSpec(16)), FLUX, size)


def test_below_min_tokens_nothing_is_windowed():
    assert "%" in cost_line(ClearSettings(ClearSpec(16), min_tokens=4096), FLUX, SIZES["1K"])
    assert "%" not in cost_line(ClearSettings(ClearSpec(16), min_tokens=4097), FLUX, SIZES["1K"])
