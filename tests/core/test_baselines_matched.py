"""Sizes with equal pairs on the tiny FLUX's grids."""

from __future__ import annotations

import pytest

from clear_core import SequenceLayout
from demo.experiments.baselines.matched import GRIDS, TARGETS, image_keys, matches, nearest
from demo.experiments.baselines.registry import KINDS
from demo.experiments.baselines.strided import Strided
from demo.experiments.baselines.swin import Swin

CASES = [(grid, window) for grid in GRIDS for window in TARGETS[grid]]
SIZED = [kind for kind, one in KINDS.items() if one.sizes((8, 8))]


@pytest.mark.parametrize("grid, window", CASES, ids=str)
def test_stride_and_compression_match_a_window_that_divides_the_grid_exactly(grid, window):
    layout = SequenceLayout(24, grid)
    found, target = matches(layout, window), Swin(window).pairs(layout)
    for kind in ("strided", "PixArt-Sigma", "Swin"):
        assert found[kind].attention.pairs(layout) == target
        assert found[kind].keys == window**2
    assert (found["strided"].size, found["Swin"].size) == (grid[0] // window, window)


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("grid", [*GRIDS, (6, 10)], ids=str)
def test_no_other_size_is_nearer(kind, grid):
    """Sizes far past the largest one that differs are asked too."""
    layout = SequenceLayout(24, grid)
    pairs = Strided(3).pairs(layout) + 5
    found = nearest(kind, layout, pairs)
    for size in range(1, 2 * sum(grid)):
        try:
            other = KINDS[kind].make(size).pairs(layout)
        except ValueError:
            continue
        assert abs(found.attention.pairs(layout) - pairs) <= abs(other - pairs)


@pytest.mark.parametrize("kind", SIZED)
def test_the_largest_size_or_the_smallest_is_dense(kind):
    """The sizes of a kind reach as far as the kind does."""
    layout = SequenceLayout(24, (12, 16))
    sizes = KINDS[kind].sizes(layout.grid)
    most = max(KINDS[kind].make(size).pairs(layout) for size in sizes)
    dense = KINDS["dense"].paper.pairs(layout)
    # Agents and pooled keys come on top of the image.
    extra = {"agent": layout.image**2, "CLEAR pooled": layout.image * 12}.get(kind, 0)
    assert most == dense + extra


def test_keys_leave_text_out():
    for text, reference in ((0, 0), (24, 0), (24, 7)):
        assert image_keys(Strided(4), SequenceLayout(text, (16, 16), reference)) == 16


def test_kinds_without_sizes_are_refused():
    for kind in ("dense", "Longformer"):
        with pytest.raises(ValueError, match=f"'{kind}'; expected one that has sizes: PixArt-Sigma, agent, "):
            nearest(kind, SequenceLayout(0, (8, 8)), 100)
