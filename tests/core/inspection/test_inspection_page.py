"""The page that CLEARInspect draws: its curves, labels, axes and letters, and the note in its place."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from clear_core import ClearSpec
from clear_core.inspection.facts import Throughput, WeightsFacts
from clear_core.inspection.report import note

pytest.importorskip("PIL")

from PIL import Image

from clear_core.inspection.canvas import QUERY, font, legible
from clear_core.inspection.charts import apart, decades
from clear_core.inspection.page import PLACES, Unit, curves_of, draw_note, draw_sheet
from tests.support.inspected import VERSIONS, facts, quoted


@pytest.mark.parametrize(
    "inspected",
    [
        pytest.param(facts(), id="window"),
        pytest.param(facts(2048, ClearSpec(8, 4), dense_blocks="0, 30"), id="overview"),
        pytest.param(facts(1024, None), id="no CLEAR"),
        pytest.param(facts(dense_blocks="0-56"), id="all blocks dense"),
        pytest.param(replace(facts(), size=(512, 6144), pace=Throughput(3.0, 4, "a run")), id="panorama"),
        pytest.param(facts(64, ClearSpec(16)), id="tiny"),
        pytest.param(facts(weights=WeightsFacts("long_" * 60 + ".safetensors", 1.0, "0")), id="a long file name"),
    ],
)
def test_the_page_is_drawn(inspected):
    page = draw_sheet(inspected, Image.new("RGB", (300, 200), (10, 200, 90)))
    assert page.width == 1640 and 900 < page.height < 3000
    assert QUERY in {color for _, color in page.getcolors(2**24)}
    # Nothing is cut off: the page's border stays empty.
    border = [page.getpixel((x, y)) for y in range(page.height) for x in (0, 1, page.width - 2, page.width - 1)]
    assert set(border) == {page.getpixel((0, 0))}


def test_a_refusal_is_a_sentence_and_the_versions():
    text = note("The model is a fish.", VERSIONS)
    assert text.splitlines()[0] == "The model is a fish."
    assert quoted(text) == {**VERSIONS, "model": "no FLUX.1"}
    assert draw_note("The model is a fish.", VERSIONS).width == 1640


@pytest.mark.parametrize("spec", [ClearSpec(8), ClearSpec(32), ClearSpec(16, 4)], ids=str)
def test_curves_rise_with_size_and_keep_their_order(spec):
    inspected = facts(spec=spec)
    curves = curves_of(inspected, Unit(inspected, inspected.row((1024, 1024))))
    for curve in curves:
        assert list(curve.values) == sorted(curve.values) and min(curve.values) > 0
        assert len(curve.values) == len(PLACES)
    dense, window, pooled = (curve.values for curve in curves)
    assert all(a >= b for a, b in zip(dense, window, strict=True)) and all(
        a >= b for a, b in zip(pooled, window, strict=True)
    )
    assert dense[0] == pytest.approx(1.0)
    # The windows' own cost grows with the area: 64 times from 1K to 8K, and far more densely.
    assert window[-1] / window[0] < 80 < dense[-1] / dense[0]
    assert [curve.in_use for curve in curves] == [False, not spec.pools, spec.pools]


@pytest.mark.parametrize(("places", "least"), [([10, 11, 12], 5), ([3, 1, 2], 4), ([0, 100], 10), ([5], 3)], ids=str)
def test_labels_are_moved_apart_and_keep_their_order(places, least):
    moved = apart(places, least)
    order = sorted(range(len(places)), key=places.__getitem__)
    assert order == sorted(range(len(places)), key=moved.__getitem__)
    assert all(moved[b] - moved[a] >= least for a, b in itertools.pairwise(order))


@pytest.mark.parametrize(
    ("values", "ticks"), [([0.2, 30], [0.1, 1, 10, 100]), ([1, 10], [1, 10]), ([5], [1, 10]), ([1], [1, 10])], ids=str
)
def test_axes_enclose_their_values(values, ticks):
    assert decades(values) == pytest.approx(ticks)


def test_letters_that_the_typeface_lacks_are_replaced():
    missing = font(40).getmask("\u6c34")
    assert legible("a \u00f6 \u00e9 \u6c34.safetensors \u00b7") == "a o e ?.safetensors \u00b7"
    for letter in legible("\u00f6\u6c34\u00b7"):
        assert bytes(font(40).getmask(letter)) != bytes(missing), letter
