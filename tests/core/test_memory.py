"""The memory arithmetic, and the documentation that quotes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory_table import card_rows, whole_frame_rows
from clear_core.memory import GIB, Activations, activation_budget, is_chunked

DOCS = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_documented_tables_are_the_calculated_ones():
    text = DOCS.read_text()
    assert "\n".join(whole_frame_rows()) in text and "\n".join(card_rows()) in text


def test_peak_grows_with_the_tokens_and_the_batch_and_falls_with_chunks():
    shape = Activations()
    peaks = [shape.peak_bytes(tokens) for tokens in (1000, 16384, 16385, 65536, 262144)]
    assert peaks[0] < peaks[1] and peaks[2] < peaks[3] < peaks[4]
    assert shape.peak_bytes(65536, chunk=4096) < shape.peak_bytes(65536, chunk=65536)
    assert shape.peak_bytes(65536, batch=2) == pytest.approx(2 * shape.peak_bytes(65536))
    assert not is_chunked(16384) and is_chunked(16385)


def test_tiny_chunks_never_beat_the_states_that_stay():
    shape, tokens = Activations(), 65536
    assert shape.peak_bytes(tokens, chunk=1) > 9 * shape.hidden_bytes(tokens)


@pytest.mark.parametrize("gigabytes", [4, 8, 24, 80])
def test_budget_leaves_room_for_weights_and_runtime(gigabytes):
    total = gigabytes * GIB
    for weights in (0, total // 4, total, 10 * total):
        budget = activation_budget(total, weights)
        assert total // 8 <= budget <= total
        assert budget + min(weights, total // 2) <= total
