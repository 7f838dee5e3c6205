"""The line on the nodes: its figures against the paper's, and a warning exactly where one is due."""

from __future__ import annotations

import pytest

from clear_core import ClearSpec
from clear_core.inspection.cost_line import cost_line, layout_of, share

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
    assert share(layout_of(*SIZES[name]), ClearSpec(radius)) == pytest.approx(windows[radius] / dense, rel=0.025)


def test_blocks_kept_dense_cost_what_they_cost():
    layout, spec = layout_of(4096, 4096), ClearSpec(8)
    assert share(layout, spec, 1.0) == 1.0
    assert share(layout, spec, 0.25) == pytest.approx(0.25 + 0.75 * share(layout, spec))


@pytest.mark.parametrize(
    "size, tokens",
    [((1024, 1024), "4,096"), ((1344, 768), "4,032"), ((1000, 600), "2,394"), ((5376, 3072), "64,512")],
    ids=str,
)
def test_tokens_of_a_size(size, tokens):
    """A side that is no multiple of 16 is padded to whole tokens."""
    assert cost_line(ClearSpec(16), size).startswith(f"{size[0]} x {size[1]}: {tokens} tokens, ")


@pytest.mark.parametrize(
    "spec, name, weights, said",
    [
        (ClearSpec(32), "1K", True, {"slower"}),
        (ClearSpec(16), "1K", True, {"does not pay"}),
        (ClearSpec(32), "2K", True, set()),
        (ClearSpec(16), "2 MP", True, set()),
        (ClearSpec(16), "4K", True, set()),
        (ClearSpec(16), "4K", False, {"no weights"}),
        (ClearSpec(8, 4), "4K", True, {"quadratic"}),
        (ClearSpec(8, 4), "1K", False, {"does not pay", "no weights", "quadratic"}),
        (None, "4K", True, {"no windows", "slow here"}),
        (None, "1K", True, {"no windows"}),
    ],
    ids=lambda value: str(value),
)
def test_warnings(spec, name, weights, said):
    line = cost_line(spec, SIZES[name], has_weights=weights)
    known = ("slower", "slow here", "does not pay", "no weights", "quadratic", "no windows")
    assert {word for word in known if word in line} == said
    assert "\n" not in line


def test_an_unknown_size_is_told_for_three():
    line = cost_line(ClearSpec(16), None)
    assert line.startswith("33 % at 1K, 10 % at 2K, 2.7 % at 4K of dense attention")
    assert "tokens" not in line


@pytest.mark.parametrize("size", [None, SIZES["4K"]], ids=["unknown size", "4K"])
def test_a_part_of_the_sampling_is_named(size):
    assert "20 % to 75 % of the sampling" in cost_line(ClearSpec(16), size, acts=(0.2, 0.75))
    assert "sampling" not in cost_line(ClearSpec(16), size, acts=(0, 1))


def test_below_min_tokens_nothing_is_windowed():
    assert "%" not in cost_line(ClearSpec(16), SIZES["1K"], min_tokens=4097)
    assert "%" in cost_line(ClearSpec(16), SIZES["1K"], min_tokens=4096)
