"""Chunks: interrupts land soon, the byte budget is kept, and long strided sequences come out right."""

import json
import mmap
from itertools import accumulate
from unittest.mock import Mock

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import budget
from clear_core.attention.backends import gather


class InterruptError(Exception):
    pass


def tensors(layout, heads=2, head_dim=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, layout.length, head_dim, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("spec", [ClearSpec(5), ClearSpec(5, 2)], ids=str)
@pytest.mark.parametrize("backend", ["gather", "flex", "dense"])
def test_an_interrupt_lands_after_any_chunk(backend, spec):
    layout = SequenceLayout(40, (50, 48))
    q, k, v = tensors(layout, heads=4, head_dim=64)
    options = {"grid": layout.grid, "spec": spec, "backend": backend, "chunk_bytes": 500_000}
    chunks = []
    clear_attention(q, k, v, on_chunk=lambda: chunks.append(1), **options)
    assert len(chunks) >= 3
    for after in {1, 2, len(chunks)}:
        interrupt = Mock(side_effect=[None] * (after - 1) + [InterruptError])
        with pytest.raises(InterruptError):
            clear_attention(q, k, v, on_chunk=interrupt, **options)
        assert interrupt.call_count == after


def test_no_chunk_of_gather_is_much_larger_than_the_budget(monkeypatch):
    """Between two looks at the interrupt there is at most one attention call of the windows or of the text.

    By one thread: of several each does so, and the one that looks may be late.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layout = SequenceLayout(300, (96, 96))
    q, k, v = tensors(layout)
    original = torch.nn.functional.scaled_dot_product_attention
    calls, most, chunks = [], [], []

    def counted(q, k, v, **options):
        calls.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return original(q, k, v, **options)

    def on_chunk():
        chunks.append(1)
        most.extend(calls[len(most) :])
        assert len(calls) == len(chunks)

    # Text queries are split by how long a call takes, here after a million pairs.
    monkeypatch.setattr(budget, "CPU_PAIRS", 2**20)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    clear_attention(
        q, k, v, grid=layout.grid, spec=ClearSpec(8), backend="gather", chunk_bytes=2**20, on_chunk=on_chunk
    )
    assert len(calls) == len(chunks)
    # The whole is 48 million pairs for the windows and 6 million for the text.
    assert max(most) < 2e6


def peak_allocated(run, folder):
    """Bytes that torch's allocator held for ``run`` at its peak, the result included: every buffer of its kernels.

    The memory of the process says less: what malloc keeps for later counts there, and differs between machines.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    moments = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in moments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "heads, radius, down_factor", [(1, 8, 1), (1, 32, 1), (1, 8, 4), pytest.param(8, 16, 1, marks=pytest.mark.slow)]
)
def test_a_budget_of_64_mib_is_kept_at_4k(heads, radius, down_factor, dtype, tmp_path, monkeypatch):
    side, budget = 256, 64 * 2**20
    q, k, v = torch.zeros(3, 1, heads, 512 + side * side, 128, dtype=dtype).add_(0.1).unbind()
    options = {"grid": (side, side), "spec": ClearSpec(radius, down_factor), "backend": "gather"}

    def run():
        assert clear_attention(q, k, v, chunk_bytes=budget, **options).shape == q.shape

    # The profiler sees this thread alone.
    monkeypatch.setattr(gather, "workers_of", lambda *case: 1)
    run()  # What is kept for all calls of a layout is made here.
    peak = peak_allocated(run, tmp_path)
    # Besides, copies of one head's queries, keys and values, or more heads if they are small.
    copies = max(3 * q.nbytes // heads, min(3 * q.nbytes, 4 * budget))
    assert q.nbytes < peak <= q.nbytes + copies + 1.1 * budget


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("masks", [1, 5])
def test_text_in_half_precision_is_attended_in_groups_of_heads(masks, return_lse):
    """A CPU packs the keys and values of a call in half precision; each head has its own mask here."""
    layout = SequenceLayout(40, (30, 28))
    q, k, v = tensors(layout, heads=5, head_dim=64, dtype=torch.bfloat16)
    bias = torch.randn(1, masks, layout.length, layout.text, generator=torch.Generator().manual_seed(1))
    options = {"grid": layout.grid, "spec": ClearSpec(4), "bias": bias, "return_lse": return_lse}
    chunks = []
    found = clear_attention(
        q, k, v, backend="gather", chunk_bytes=2 * 4 * layout.length * 64, on_chunk=lambda: chunks.append(1), **options
    )
    assert len(chunks) > 5
    expected = clear_attention(q.float(), k.float(), v.float(), backend="dense", **options)
    for one, other in zip(found, expected, strict=True) if return_lse else [(found, expected)]:
        torch.testing.assert_close(one.float(), other, rtol=0, atol=2e-2)


def test_100_000_tokens_with_v_as_a_view_of_a_wide_tensor():
    """Row offsets pass 2**31 as in the host's single blocks, where V is a view with token stride 21504."""
    stride, grid, head_dim = 21504, (400, 250), 16
    layout = SequenceLayout(0, grid)
    assert layout.length * stride > 2**31
    generator = torch.Generator().manual_seed(0)
    q, k, values = (torch.randn(1, 1, layout.length, head_dim, generator=generator).bfloat16() for _ in range(3))
    # Anonymous memory of which only the pages that are written become real.
    with mmap.mmap(-1, layout.length * stride * 2) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        wide = torch.frombuffer(memory, dtype=torch.bfloat16)
        v = wide.as_strided((1, 1, layout.length, head_dim), (stride, stride, stride, 1))
        v.copy_(values)
        found = clear_attention(q, k, v, grid=grid, spec=ClearSpec(4), backend="gather")
        del wide, v
    # The last rows on their own: their windows reach no farther up than the rows taken.
    rows = slice(-20 * grid[1], None)
    part = [one[:, :, rows].float() for one in (q, k, values)]
    expected = clear_attention(*part, grid=(20, grid[1]), spec=ClearSpec(4), backend="dense")
    rows = slice(-16 * grid[1], None)
    torch.testing.assert_close(found[:, :, rows].float(), expected[:, :, rows], rtol=0, atol=8e-3)
    # And every row against the same numbers without the stride.
    assert torch.equal(found, clear_attention(q, k, values, grid=grid, spec=ClearSpec(4), backend="gather"))
