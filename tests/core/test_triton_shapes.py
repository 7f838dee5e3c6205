"""Block shapes of the Triton kernel: candidates, measuring them, the order on disk."""

import json

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.triton import autotune_cache, block_shapes
from clear_core.attention.backends.triton.launch import BlockShape

CPU = torch.device("cpu")


class OutOfResources(Exception):  # noqa: N818 - named as Triton's
    """As Triton's."""


FAST, SLOW, BROKEN = BlockShape(128, 64, 8, 3), BlockShape(64, 64, 4, 2), BlockShape(128, 32, 8, 3)


def seconds(shape):
    if shape == BROKEN:
        raise OutOfResources("registers")
    return {FAST: 1.0, SLOW: 2.0}[shape]


def test_the_measured_order_is_kept_on_disk_by_key(tmp_path):
    file, shapes = tmp_path / "new" / "tiles.json", (SLOW, BROKEN, FAST)
    assert autotune_cache.stored_order(file, "card", shapes) is None
    assert block_shapes.measured_order(file, "card", shapes, seconds) == (FAST, SLOW)
    assert block_shapes.measured_order(file, "other card", (SLOW,), seconds) == (SLOW,)
    assert autotune_cache.stored_order(file, "card", shapes) == (FAST, SLOW)
    assert autotune_cache.stored_order(file, "other card", shapes) == (SLOW,)
    assert autotune_cache.stored_order(file, "card", (FAST,)) is None, "shapes of an older version of the code"
    assert [path.name for path in file.parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"card": 3}',
        '{"card": []}',
        '{"card": [3]}',
        '{"card": ["128x64"]}',
        '{"card": [["128x64"]]}',
        '{"card": {"a": 1}}',
        "\x00\xff",
    ],
)
def test_a_damaged_file_is_measured_anew(text, tmp_path):
    file = tmp_path / "tiles.json"
    file.write_bytes(text.encode("latin-1"))
    assert autotune_cache.stored_order(file, "card", (SLOW, FAST)) is None
    assert block_shapes.measured_order(file, "card", (SLOW, FAST), seconds) == (FAST, SLOW)
    assert json.loads(file.read_text())["card"][0] == str(FAST)


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert block_shapes.measured_order(tmp_path / "file" / "tiles.json", "card", (SLOW, FAST), seconds) == (FAST, SLOW)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), OutOfResources("none fits")], ids=repr)
def test_nothing_is_kept_where_nothing_was_measured(error, tmp_path):
    def raises(shape):
        raise error

    assert block_shapes.measured_order(tmp_path / "tiles.json", "card", (SLOW, FAST), raises) == (SLOW, FAST)
    assert not list(tmp_path.iterdir())


def test_trying_shapes_out_leaves_the_users_random_numbers_alone(monkeypatch):
    ran = []
    monkeypatch.setattr(block_shapes, "launch", lambda shape, *arguments: ran.append(shape))
    monkeypatch.setattr(block_shapes, "_TRIAL", (SequenceLayout(3, (9, 10)), ClearSpec(4), 2))
    before = torch.get_rng_state()
    assert block_shapes._seconds(CPU, torch.float32, 16, FAST) > 0
    assert set(ran) == {FAST} and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "capability, kilobytes", [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((12, 0), 99)], ids=str
)
def test_two_programs_or_eight_warps_fit_a_multiprocessor(capability, kilobytes):
    """Shared memory as ``benchmarks.triton_compile`` counts it: the queries, and keys and values of each stage."""
    for shape in block_shapes.candidate_shapes("cuda", capability, torch.bfloat16, 128):
        programs = 8 // shape.warps
        held = 2 * 128 * (shape.block_m + 2 * shape.block_n * shape.stages)
        assert programs * held <= kilobytes * 1024, str(shape)
