"""The memory arithmetic, and the documentation that quotes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory_table import card_rows, whole_frame_rows
from clear_core.attention.tiling.gathered import MOST_BYTES
from clear_core.call_memory import CallMemory, ControlMemory, MemoryPlan
from clear_core.memory import GIB, RUNTIME_BYTES, Activations, activation_budget, is_chunked
from clear_core.sdedit import choose_tiles

DOCS = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_documented_tables_are_the_calculated_ones():
    text = DOCS.read_text()
    assert "\n".join(whole_frame_rows()) in text and "\n".join(card_rows()) in text


def test_peak_grows_with_the_tokens_and_the_batch_and_falls_with_chunks():
    call = CallMemory()
    peaks = [call.peak_bytes(image) for image in (1000, 15872, 15873, 65536, 262144)]
    assert peaks[0] < peaks[1] and peaks[2] < peaks[3] < peaks[4]
    assert CallMemory(chunk=4096).peak_bytes(65536) < CallMemory(chunk=None).peak_bytes(65536)
    assert call.peak_bytes(65536, batch=2) == pytest.approx(2 * call.peak_bytes(65536))
    assert not is_chunked(128 * 128 + 1024) and is_chunked(128 * 128 + 1025), "2048 x 2048 with its text is not"


def test_what_attention_keeps_is_in_the_runtime_s_share():
    assert MOST_BYTES <= RUNTIME_BYTES // 10


def test_tiny_chunks_never_beat_the_states_that_stay():
    shape, tokens = Activations(), 65536
    assert CallMemory(text=0, chunk=1).peak_bytes(tokens) > 9 * shape.hidden_bytes(tokens)


@pytest.mark.parametrize("gigabytes", [4, 8, 24, 80])
def test_budget_leaves_room_for_weights_and_runtime(gigabytes):
    total = gigabytes * GIB
    for weights in (0, total // 4, total, 10 * total):
        budget = activation_budget(total, weights)
        assert total // 8 <= budget <= total
        assert budget + min(weights, total // 2) <= total


KONTEXT = (2048 // 16) ** 2
"""Tokens of a reference of 2048 x 2048 px."""


def test_references_are_in_the_rule():
    """On 12 GB, the tiles that a picture of 4096 px gets without them would take more than there is."""
    total, weights, grid = 12 * GIB, int(11.9e9), (256, 256)
    kontext = MemoryPlan((CallMemory(reference=2 * KONTEXT),), weights)
    without = choose_tiles(grid, memory=MemoryPlan(weights=weights), total=total).tile
    assert kontext.peak_bytes(without[0] * without[1]) > kontext.budget(total)
    layout = choose_tiles(grid, memory=kontext, total=total)
    assert kontext.peak_bytes(layout.tile[0] * layout.tile[1]) <= kontext.budget(total)


@pytest.mark.parametrize(
    "brings",
    [
        {"text": 4096},
        {"reference": KONTEXT},
        {"controls": (ControlMemory(double=5, single=10),)},
        {"chunk": None},
        {"keeps_input": True, "chunk": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("image", [4096, 65536], ids=str)
def test_whatever_a_prompt_brings_along_counts(brings, image):
    assert CallMemory(**brings).peak_bytes(image) >= CallMemory().peak_bytes(image)
    assert CallMemory(**brings).peak_bytes(65536) > 1.05 * CallMemory().peak_bytes(65536)


def test_the_largest_of_several_prompts_decides():
    short, long = CallMemory(), CallMemory(text=8192)
    assert MemoryPlan((short, long)).peak_bytes(4096) == MemoryPlan((long, short)).peak_bytes(4096)
    assert MemoryPlan((short, long)).peak_bytes(4096) == long.peak_bytes(4096)


def test_two_controls_in_a_chain_leave_a_residual_for_every_block():
    """The host adds them block by block, so that few shared tensors become 19 and 38."""
    control, image = ControlMemory(double=5, single=10), 4096
    state = control.state_bytes(image)
    one, two = (CallMemory(controls=(control,) * count).control_bytes(image, 0)[1] for count in (1, 2))
    assert one == 15 * state + control.hint_bytes(image)
    assert two == 57 * state + 2 * control.hint_bytes(image)
    apart = CallMemory(controls=(ControlMemory(double=6), ControlMemory(single=10)))
    assert apart.control_bytes(image, 0)[1] == 16 * state + 2 * control.hint_bytes(image)


def test_references_that_cannot_fit_do_not_make_a_thousand_tiles():
    """Tiles cannot lower what each of them gets whole."""
    memory, total = MemoryPlan((CallMemory(reference=512 * 512),), int(11.9e9)), 12 * GIB
    assert memory.peak_bytes(0) > memory.budget(total)
    layout = choose_tiles((512, 512), memory=memory, total=total)
    assert len(layout.tiles) <= 16 and memory.peak_bytes(layout.tile[0] * layout.tile[1]) < 1.5 * memory.peak_bytes(0)


def test_control_weights_are_weights():
    assert MemoryPlan(weights=6 * GIB).budget(24 * GIB) > MemoryPlan(weights=10 * GIB).budget(24 * GIB)
