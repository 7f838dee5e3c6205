"""Counting what a call asks of a device that is not here; what flex copies."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import launches, pretended_card
from benchmarks.counted import Counting
from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.flex.block_mask import key_count
from clear_core.attention.fused import SCORE_BYTES
from clear_core.attention.tiling.order import KEY_BLOCK, query_tile_size
from clear_core.attention.tiling.plan import tile_plan

CPU = torch.device("cpu")


def test_what_is_counted():
    with torch.no_grad(), Counting(CPU) as counting:
        x = counting.tensor(4, 6, dtype=torch.float16)
        y = x.transpose(0, 1)[1:].new_empty(5, 4)
        assert counting.counts.launches == counting.counts.copied_bytes == 0
        y.copy_(x.transpose(0, 1)[1:])
        assert (counting.counts.launches, counting.counts.copied_bytes) == (1, 40)
        x.index_select(0, torch.tensor([0, 2])).zero_()
        assert (counting.counts.launches, counting.counts.copied_bytes) == (3, 88)
        x[:, torch.tensor([0, 3])] = y[:4, :2]
        assert (counting.counts.launches, counting.counts.copied_bytes) == (4, 104)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        kernel(*(counting.tensor(1, 2, n, 8, dtype=torch.float16) for n in (5, 7, 7)))
    assert (counting.counts.attention_calls, counting.counts.most_scores) == (1, 70)
    assert (counting.counts.launches, counting.counts.copied_bytes) == (5, 104)


def test_what_other_threads_do_is_counted():
    with torch.no_grad(), Counting(CPU) as counting, ThreadPoolExecutor(2) as pool:
        x = counting.tensor(4, 6, dtype=torch.float16)
        list(pool.map(lambda row: x[row].add(1).zero_(), range(4)))
    assert (counting.counts.launches, counting.counts.copied_bytes) == (8, 96)


@pytest.mark.parametrize("grid", [(64, 64), (68, 120), (90, 160), (52, 76)], ids=str)
def test_flex_writes_each_byte_once(grid):
    """q, k and v in the kernel's order, padding included, and the result. Zeros beneath and a padded copy made it 7
    hidden states on whole tiles, and 11 on others; now it is 4."""
    layout = SequenceLayout(launches.TEXT, grid)
    plan = tile_plan(layout, ClearSpec(16), CPU)
    found = launches.count(launches.KINDS["CPU"], "flex", grid, radius=16, down_factor=1)
    height, width = query_tile_size(plan.keys.upright)
    # Padding below and padding beside the image overlap.
    corner = (plan.keys.tiles[0] * height - grid[0]) * (plan.keys.tiles[1] * width - grid[1])
    tokens = plan.queries.tokens + 2 * key_count(plan, KEY_BLOCK) + layout.length + 3 * corner
    assert found["copied_bytes"] == tokens * launches.HEADS * launches.HEAD_DIM * 2


@pytest.mark.slow
@pytest.mark.skipif(pretended_card.missing() is not None, reason=f"{pretended_card.missing()}")
def test_no_device_keeps_more_scores_than_a_chunk_has_memory(tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["launches.py", "--sizes", "1K", "--output", str(record)])
    launches.main()
    results = launches.json.loads(record.read_text())["results"]
    kinds = [(one["kind"], one["backend"]) for one in results]
    assert kinds == [(name, backend) for name, kind in launches.KINDS.items() for backend in kind.backends]
    for one in results:
        kept = one["score_bytes"].values()
        assert len(kept) == len(launches.RADII) * len(launches.DOWN_FACTORS)
        if launches.KINDS[one["kind"]].fused:
            assert not any(kept)
        else:
            assert 0 < max(kept) * SCORE_BYTES / 4 <= 256 * 2**20
        if one["backend"] == "triton":
            assert one["copied_bytes"]["1K r8"] == launches.TEXT * launches.HEADS * launches.HEAD_DIM * 2
