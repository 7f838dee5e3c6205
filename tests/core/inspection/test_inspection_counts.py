"""The work, time and memory that CLEARInspect states, against the paper's numbers and the counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clear_core import ClearSpec, SequenceLayout
from clear_core.call_memory import CallMemory, MemoryPlan
from clear_core.cost import clear_pairs, dense_pairs, token_gflops
from clear_core.families import CHROMA, ModelShape
from clear_core.inspection.facts import Throughput
from clear_core.inspection.report import MARK, report
from clear_core.inspection.units import percent, time_words
from tests.support.inspected import FLUX, facts, quoted


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


def test_all_blocks_dense_is_no_window():
    every = facts(dense_blocks="0-56")
    assert "dense_blocks names all 57 blocks" in report(every) and "circle" not in report(every).split(MARK)[0]
    assert every.in_use(every.row(every.size)) == every.row(every.size).dense
    assert "inactive" not in report(facts(dense_blocks="0-55"))


def test_a_relative_s_blocks_are_not_worked_on_in_chunks():
    """Without chunks a long sequence takes more memory; CLEARAttention installs them on FLUX.1 only."""
    whole = MemoryPlan((CallMemory(chunk=None),))
    relative = replace(facts(), model=replace(FLUX, shape=ModelShape.usual(CHROMA), memory=whole))
    assert relative.row((4096, 4096)).memory > facts().row((4096, 4096)).memory
    assert "nobody has published distilled weights for it" in report(relative) and "Get weights" not in report(relative)
