"""The paper's own figures, counted: GFLOP and TFLOP of a layer of FLUX.1, each to its last printed digit."""

from __future__ import annotations

import pytest

from clear_core import SequenceLayout
from clear_core.cost import clear_pairs, dense_pairs, gflops
from demo.experiments.baselines.neighbourhood import Neighbourhood
from demo.experiments.baselines.paper import FIGURES, SLIPS, Figure
from demo.experiments.baselines.registry import KINDS
from demo.experiments.baselines.tables import matched_table, paper_table
from demo.experiments.baselines.windows import Windows
from demo.experiments.hybrid import RECORD

LAYOUT = SequenceLayout(512, (64, 64))


@pytest.mark.parametrize("figure", FIGURES, ids=[one.name.replace(" ", "-") for one in FIGURES])
def test_a_printed_figure_is_what_is_counted(figure: Figure):
    if figure.name in SLIPS:
        # A slip of the paper: table 2 prints 80.6 for r = 16, its own table 7 has 0.09 TFLOP for the same layer.
        assert (figure.printed, f"{figure.value:.2f}") == ("80.6", "86.65")
    else:
        assert figure.counted == figure.printed


def test_every_figure_is_here_once_and_two_are_slips():
    counts = {where: sum(one.where == where for one in FIGURES) for where in ("table 2", "table 3", "table 7")}
    assert counts == {"table 2": 13, "table 3": 8, "table 7": 16}
    names = [one.name for one in FIGURES]
    assert len(set(names)) == len(names) == 38 and set(names) > SLIPS


def test_which_figures_are_rounded_twice():
    """Rounded once, these four would be a unit less in the last digit."""
    once = [one.name for one in FIGURES if one.name not in SLIPS and f"{one.value:.{one.digits}f}" != one.printed]
    assert once == [
        "table 2, PixArt-Sigma, 1024 px",
        "table 2, Strided Attention, 1024 px",
        "table 2, Swin Transformer, 1024 px",
        "table 7, CLEAR (r=32), 8192 px",
    ]


# To more digits than any table prints: 12288 operations a pair, text and image together 4 456 448 pairs, and the keys.
@pytest.mark.parametrize(
    "kind, size, expected",
    [
        ("dense", 0, "260.919"),
        ("sigmoid", 0, "260.919"),
        ("linear", 0, "174.003"),
        ("PixArt-Sigma", 4, "67.646"),
        ("agent", 4, "80.531"),
        ("strided", 4, "67.646"),
        ("Swin", 16, "67.646"),
        ("neighbourhood", 15, "66.085"),
        ("neighbourhood", 17, "69.307"),
        ("CLEAR", 8, "63.486"),
        ("CLEAR", 16, "86.647"),
        ("CLEAR", 32, "154.110"),
    ],
)
def test_a_layer_at_1024_px(kind, size, expected):
    assert f"{gflops(KINDS[kind].make(size).pairs(LAYOUT)):.3f}" == expected


def test_dense_and_windows_are_counted_by_the_product():
    for figure in FIGURES:
        side = figure.side // 16
        layout = SequenceLayout(512, (side, side))
        if isinstance(figure.attention, Windows):
            assert figure.attention.pairs(layout) == clear_pairs(layout, figure.attention.spec)
    assert KINDS["dense"].paper.pairs(LAYOUT) == dense_pairs(LAYOUT)


def test_a_shifted_block_has_fewer_pairs_than_the_paper_counts():
    swin = KINDS["Swin"].paper
    seen = sum(size**2 for size in (8, 16, 16, 16, 8))
    assert swin.pairs(LAYOUT, 0) - swin.pairs(LAYOUT, 1) == 4096 * 256 - seen**2


def test_the_neighbourhood_is_the_nearest_to_the_other_attentions():
    near = KINDS["strided"].paper.pairs(LAYOUT)
    odd = [Neighbourhood(size) for size in range(1, 64, 2)]
    assert min(odd, key=lambda one: abs(one.pairs(LAYOUT) - near)) == KINDS["neighbourhood"].paper


def test_the_readme_shows_the_counts():
    text = RECORD.with_name("README.md").read_text(encoding="utf-8")
    assert [table for table in (paper_table(), matched_table()) if table not in text] == []
