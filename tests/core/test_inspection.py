"""What CLEARInspect says and draws, against the counts, the oracle's windows and the drawn pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.tiling.plan import tile_plan
from clear_core.cost import clear_pairs, dense_pairs, token_gflops
from clear_core.families import CHROMA, FLUX1, ModelShape
from clear_core.inspection.facts import Inspection, ModelFacts, Throughput, WeightsFacts
from clear_core.inspection.report import MARK, headline, note, report
from clear_core.inspection.units import memory_words, percent, significant, time_words
from clear_core.memory import Activations
from clear_core.settings import ClearSettings

pytest.importorskip("PIL")

import itertools

from PIL import Image

from clear_core.inspection.block_map import block_map
from clear_core.inspection.canvas import CIRCLE, POOLED, QUERY, TEXT, UNSEEN, font, legible
from clear_core.inspection.charts import apart, decades
from clear_core.inspection.overlay import draw_overlay
from clear_core.inspection.page import PLACES, Unit, curves_of, draw_note, draw_sheet

FLUX = ModelFacts(ModelShape.usual(FLUX1), Activations(), "bfloat16", 23_800_000_000)
WINDOWS = ClearSpec(16)
VERSIONS = {"clear-flux": "0.1.0", "torch": "2.11.0"}


def facts(side: int = 4096, spec: ClearSpec | None = WINDOWS, **others: Any) -> Inspection:
    """A square picture; ``spec`` None is a model without CLEAR."""
    settings = ClearSettings(spec, dense_blocks=others.pop("dense_blocks", "")) if spec else None
    return Inspection((side, side), "picture", FLUX, settings, versions=VERSIONS, device="cpu", **others)


def quoted(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.split(f"{MARK}\n")[1].splitlines())


# The paper's table 1, TFLOP of attention a layer: full, and radius 16.
@pytest.mark.parametrize(("side", "full", "window"), [(1024, 0.26, 0.09), (4096, 53.6, 1.43), (8192, 847.7, 5.79)])
def test_work_of_a_step_is_the_papers_attention_and_the_model_s_matrices(side, full, window):
    row = facts(side).row((side, side))
    tokens = (side // 16) ** 2 + 512
    # 2 * 12 * 3072**2 operations a token and block: q, k, v and output are 4 squares, the MLP's two ends 8.
    linear = 57 * tokens * 24 * 3072**2 / 1e9
    assert row.dense - linear == pytest.approx(57e3 * full, rel=0.02)
    assert row.window - linear == pytest.approx(57e3 * window, rel=0.06)


def test_flux_has_about_as_many_numbers_a_token_as_its_parameters_say():
    """FLUX.1 has 11.9 billion numbers; modulation, 3.2 billion of them, is not applied to each token."""
    image_stream = token_gflops() * 1e9 / 2 * 57
    text_stream = token_gflops() * 1e9 / 2 * 19
    assert 8.0e9 < image_stream + text_stream < 9.0e9


def test_blocks_kept_dense_cost_what_dense_ones_do():
    plain, some, every = (facts(dense_blocks=named).row((4096, 4096)) for named in ("", "d0-18", "0-56"))
    assert every.window == pytest.approx(every.dense) and every.pooled == pytest.approx(every.dense)
    assert some.window == pytest.approx((19 * plain.dense + 38 * plain.window) / 57)


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


def test_time_is_the_work_at_the_measured_pace():
    inspected = facts(2048, pace=Throughput(1000.0, 20, "a run"))
    work = inspected.row((2048, 2048)).window
    assert inspected.seconds(work) == pytest.approx(work / 1000)
    text = report(inspected)
    assert f"{time_words(work / 1000)} a step, {time_words(work / 50)} for 20 steps" in text
    assert quoted(text)["time of a step"] == f"{time_words(work / 1000)} (from a run)"


def test_no_time_is_made_up():
    text = report(facts())
    assert "nothing was timed" in text.split(MARK)[0]
    assert quoted(text)["time of a step"] == "not known, nothing was timed"
    assert not any(f" {unit} a step" in text for unit in ("ms", "s", "min", "h"))


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
    assert lines["ntk factor"] == "5 (set)"
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


def test_a_refusal_is_a_sentence_and_the_versions():
    text = note("The model is a fish.", VERSIONS)
    assert text.splitlines()[0] == "The model is a fish."
    assert quoted(text) == {**VERSIONS, "model": "no FLUX.1"}
    assert draw_note("The model is a fish.", VERSIONS).width == 1640


def near(pixel: tuple[int, int, int], color: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 40


@pytest.mark.parametrize("picture", [None, Image.new("RGB", (64, 64), (250, 120, 0))], ids=["plain", "picture"])
@pytest.mark.parametrize(("size", "radius"), [((4096, 4096), 16), ((2048, 3072), 32), ((6000, 4000), 8)], ids=str)
def test_the_drawn_circle_is_true_to_scale(size, radius, picture):
    overlay = draw_overlay(size, ClearSpec(radius), picture=picture, width=1000, height=1000)
    assert overlay.scale == pytest.approx(1000 / max(size))
    image, (x, y) = overlay.image, overlay.centre
    assert max(image.size) == 1000
    lines = [
        [place for place in range(image.width) if near(image.getpixel((place, int(y))), CIRCLE)],
        [place for place in range(image.height) if near(image.getpixel((int(x), place)), CIRCLE)],
    ]
    for places, middle in zip(lines, (x, y), strict=True):
        left = [place for place in places if place < middle]
        right = [place for place in places if middle < place]
        # The line's own middle; below the circle the label's border may be of its color too.
        first, last = left[len(left) // 2] if places is lines[0] else left[0] + 1, right[0] + 1
        assert first == pytest.approx(middle - 16 * radius * overlay.scale, abs=2)
        assert last == pytest.approx(middle + 16 * radius * overlay.scale, abs=2)
    assert image.getpixel((int(x), int(y))) == QUERY


def test_the_frame_keeps_its_shape():
    image = draw_overlay((1000, 4000), ClearSpec(8), width=800, height=800).image
    assert image.size == (800, 200)


def test_block_map_is_the_oracles_mask_by_tiles():
    """One pixel a tile: coloured where some query of the tile sees some key of the other."""
    layout, spec = SequenceLayout(64, (32, 48)), ClearSpec(5)
    plan = tile_plan(layout, spec, torch.device("cpu"))
    assert plan.upright and plan.tiles == (2, 6)
    side = 960
    image = block_map(plan, side)
    prefix, band = round(side * 64 / 1600), round(side * 64 / 1600)
    mask = image_rows_mask(range(32), layout, spec, torch.device("cpu")).view(32, 48, -1)
    image_mask = mask[:, :, layout.image_slice].view(32, 48, 32, 48)
    for query in range(12):
        top, left = 16 * (query // 6), 8 * (query % 6)
        for key in range(24):
            tile, half = divmod(key, 2)
            key_top, key_left = 16 * (tile // 6) + 8 * half, 8 * (tile % 6)
            seen = bool(
                image_mask[top : top + 16, left : left + 8, key_top : key_top + 8, key_left : key_left + 8].any()
            )
            y = band + (side - band) * (query + 0.5) / 12
            x = prefix + (side - prefix) * (key + 0.5) / 24
            assert image.getpixel((int(x), int(y))) == (CIRCLE if seen else UNSEEN), (query, key)
    assert image.getpixel((1, 500)) == TEXT == image.getpixel((500, 1))


def test_block_map_shows_pooled_keys():
    plan = tile_plan(SequenceLayout(100, (64, 64)), ClearSpec(4, 4), torch.device("cpu"))
    colors = {color for _, color in block_map(plan, 400).getcolors(2**20)}
    assert {POOLED, TEXT, UNSEEN} <= colors


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


def test_letters_that_the_typeface_lacks_are_replaced():
    missing = font(40).getmask("\u6c34")
    assert legible("a \u00f6 \u00e9 \u6c34.safetensors \u00b7") == "a o e ?.safetensors \u00b7"
    for letter in legible("\u00f6\u6c34\u00b7"):
        assert bytes(font(40).getmask(letter)) != bytes(missing), letter


def test_all_blocks_dense_is_no_window():
    every = facts(dense_blocks="0-56")
    assert "dense_blocks names all 57 blocks" in report(every) and "circle" not in report(every).split(MARK)[0]
    assert every.in_use(every.row(every.size)) == every.row(every.size).dense
    assert "inactive" not in report(facts(dense_blocks="0-55"))


def test_weights_at_no_strength_are_no_weights():
    def said(strength: float) -> str:
        return report(facts(weights=WeightsFacts("w.safetensors", strength, "0")))

    assert "picture will suffer" in said(0.0) and "picture will suffer" not in said(0.1)


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


def test_attention_s_own_share_is_the_counted_one():
    layout = SequenceLayout(512, (256, 256))
    share = clear_pairs(layout, ClearSpec(16)) / dense_pairs(layout)
    assert f"its attention alone: {percent(share)}" in report(facts())


def test_the_share_of_attention_counts_dense_blocks():
    layout = SequenceLayout(512, (256, 256))
    share = (30 + 27 * clear_pairs(layout, ClearSpec(16)) / dense_pairs(layout)) / 57
    inspected = facts(dense_blocks="0-29")
    assert f"its attention alone: {percent(share)}" in report(inspected)
    assert quoted(report(inspected))["windows at this size"] == "yes, in 27 of 57 blocks"


def test_a_window_over_the_whole_picture_is_inactive():
    covered = facts(256, ClearSpec(64))
    text = report(covered)
    assert quoted(text)["windows at this size"] == "no (the window covers the whole picture)"
    assert covered.in_use(covered.row(covered.size)) == covered.row(covered.size).dense
    assert "of the work" not in text.split(MARK)[0]


def test_a_relative_s_blocks_are_not_worked_on_in_chunks():
    """Without chunks a long sequence takes more memory; CLEARAttention installs them on FLUX.1 only."""
    relative = replace(facts(), model=replace(FLUX, shape=ModelShape.usual(CHROMA)))
    assert relative.row((4096, 4096)).memory > facts().row((4096, 4096)).memory
    assert relative.row((4096, 4096)).memory == facts(spec=None).row((4096, 4096)).memory
    assert "distilled weights for Chroma" in report(relative) and "Get weights" not in report(relative)
