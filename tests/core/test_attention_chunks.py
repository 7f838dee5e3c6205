"""Chunks: interrupts land soon, the byte budget is kept, and long strided sequences come out right."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import budget

ROOT = Path(__file__).resolve().parents[2]


class Interrupted(Exception):
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
        seen = []

        def on_chunk():
            seen.append(1)
            if len(seen) == after:
                raise Interrupted

        with pytest.raises(Interrupted):
            clear_attention(q, k, v, on_chunk=on_chunk, **options)
        assert len(seen) == after


def test_no_chunk_of_gather_is_much_larger_than_the_budget(monkeypatch):
    """Between two looks at the interrupt there is at most one attention call of the windows or of the text."""
    layout = SequenceLayout(300, (96, 96))
    q, k, v = tensors(layout)
    original = torch.nn.functional.scaled_dot_product_attention
    between, most = [], []

    def counted(q, k, v, **options):
        between.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return original(q, k, v, **options)

    def on_chunk():
        assert len(between) == 1
        most.append(between.pop())

    # Text queries are split by how long a call takes, here after a million pairs.
    monkeypatch.setattr(budget, "CPU_PAIRS", 2**20)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    clear_attention(
        q, k, v, grid=layout.grid, spec=ClearSpec(8), backend="gather", chunk_bytes=2**20, on_chunk=on_chunk
    )
    assert not between
    # The whole is 48 million pairs for the windows and 6 million for the text.
    assert max(most) < 2e6


PEAK = """
import resource, sys, torch
from clear_core import ClearSpec, clear_attention

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

heads, radius, down, budget = map(int, sys.argv[1:])
def run(side, **options):
    q, k, v = torch.zeros(3, 1, heads, 512 + side * side, 128, dtype=torch.bfloat16).add_(0.1).unbind()
    before = peak()
    out = clear_attention(q, k, v, grid=(side, side), spec=ClearSpec(radius, down), backend="gather", **options)
    return peak() - before - out.numel() * out.element_size()

run(16, chunk_bytes=1)
print(run(256, chunk_bytes=budget))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory in Linux's unit")
@pytest.mark.parametrize(
    "heads, radius, down_factor", [(1, 8, 1), (1, 32, 1), (1, 8, 4), pytest.param(8, 16, 1, marks=pytest.mark.slow)]
)
def test_a_budget_of_64_mib_is_kept_at_4k(heads, radius, down_factor):
    """Peak of a process of its own, over what q, k, v and the result take."""
    chunk_bytes = 64 * 2**20
    command = [sys.executable, "-c", PEAK, *map(str, (heads, radius, down_factor, chunk_bytes))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 2 * chunk_bytes


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
