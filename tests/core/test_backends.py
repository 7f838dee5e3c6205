"""The choice of a backend, what is said about it, and how few kernels are compiled."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import choose, explain_backend
from clear_core.attention.backends.base import KernelError
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.call import AttentionCall

ROOT = Path(__file__).resolve().parents[2]

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """What was said and dropped in other tests is forgotten, and the other way round."""
    monkeypatch.setattr(choose, "_logged", set())
    monkeypatch.setattr(choose, "_dropped", {})
    monkeypatch.setattr(choose, "_verdicts", dict(choose._verdicts))


def tensors(grid=(20, 21), text=5, batch=1, heads=2, head_dim=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, heads, text + grid[0] * grid[1], head_dim, generator=generator).unbind()


WINDOW = ClearSpec(4)


def run(backend, spec=WINDOW, grid=(20, 21), **options):
    return clear_attention(*tensors(grid), grid=grid, spec=spec, backend=backend, **options)


@pytest.mark.parametrize(
    "device, spec, passes, name",
    [
        (CPU, ClearSpec(8), True, "gather"),
        (CPU, ClearSpec(99), True, "dense"),
        (CPU, ClearSpec(99, 4), True, "gather"),
        (CUDA, ClearSpec(8), True, "triton"),
        (CUDA, ClearSpec(8), False, "gather"),
        (CUDA, ClearSpec(99), True, "dense"),
        (torch.device("mps"), ClearSpec(8), True, "gather"),
    ],
    ids=lambda value: str(value),
)
def test_auto_and_its_explanation(device, spec, passes, name, monkeypatch):
    monkeypatch.setattr(choose, "_self_test", lambda *case: None if passes else "the kernel is broken")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    chosen, sentence = explain_backend(device, torch.bfloat16, 128, (64, 64), spec)
    assert chosen == name
    assert sentence.endswith(".")
    if device is CUDA and not passes:
        assert "the kernel is broken" in sentence


def test_without_triton_there_is_no_flex_on_cuda(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "Triton" in choose.unavailable_reason("flex", CUDA, torch.bfloat16, 128)
    assert explain_backend(CUDA, torch.bfloat16, 128, (64, 64), ClearSpec(8))[0] == "gather"


@pytest.mark.parametrize(
    "device, dtype, options, part",
    [
        (torch.device("mps"), torch.float16, {}, "mps"),
        (CPU, torch.float64, {}, "float64"),
        (CPU, torch.float32, {"needs_grad": True}, "gradient"),
        (CPU, torch.float32, {"return_lse": True}, "log-sum-exp"),
    ],
)
def test_why_flex_is_not_available(device, dtype, options, part):
    assert part in choose.unavailable_reason("flex", device, dtype, 64, **options)


def test_a_named_backend_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="backend is 'flex', but FlexAttention returns no log-sum-exp on a CPU"):
        run("flex", return_lse=True)


def test_auto_is_the_named_backend():
    assert torch.equal(run("auto"), run("gather"))
    assert torch.equal(run("auto", ClearSpec(40)), run("dense", ClearSpec(40)))


def test_a_kernel_that_fails_is_dropped_and_said_once(monkeypatch, caplog):
    calls = []

    def broken(*arguments):
        calls.append(1)
        raise ValueError("no such instruction\nsecond line")

    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    monkeypatch.setattr(flex, "_compiled", lambda threads: broken)
    with caplog.at_level(logging.WARNING):
        outputs = [run("flex") for _ in range(3)]
    assert len(calls) == 1
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "no such instruction" in caplog.text
    for out in outputs:
        assert torch.equal(out, run("gather"))


def test_a_failure_is_explained_for_a_device_without_an_index(monkeypatch):
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    choose._dropped["triton", CUDA, torch.bfloat16, 128, False, False, False] = "no such instruction"
    for device in ("cuda", "cuda:0"):
        assert explain_backend(device, torch.bfloat16, 128, (64, 64), ClearSpec(8))[0] == "flex"
        assert "no such" in choose.unavailable_reason("triton", torch.device(device), torch.bfloat16, 128)


def test_a_kernel_that_fails_its_self_test_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(choose, "_verdicts", {})
    monkeypatch.setattr(flex, "_compiled", lambda threads: lambda q, *rest: torch.zeros_like(q))
    with pytest.raises(ValueError, match=r"backend is 'flex', but its kernel is off by .* use 'auto'"):
        run("flex")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_what_the_host_handles_is_passed_on(error, monkeypatch):
    def raises(*arguments):
        raise error

    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    monkeypatch.setattr(flex, "_compiled", lambda threads: raises)
    with pytest.raises(type(error)):
        run("flex")
    assert not choose._dropped


def test_flex_never_runs_unfused(monkeypatch):
    # As with TORCHDYNAMO_DISABLE=1, where a "compiled" function is the plain one.
    monkeypatch.setattr(flex, "_compiled", lambda threads: flex._fused)
    with pytest.raises(KernelError, match="without its compiled kernel"):
        q, k, v = tensors()
        choose.FLEX.run(
            AttentionCall(
                q=q,
                k=k,
                v=v,
                layout=SequenceLayout(5, (20, 21)),
                query_rows=range(20),
                spec=ClearSpec(4),
                spatial_weight=None,
                scale=1.0,
                bias=None,
                chunk_bytes=None,
                on_chunk=lambda: None,
                return_lse=False,
                needs_grad=False,
            )
        )


def test_six_resolutions_and_three_radii_compile_two_kernels_at_most(monkeypatch):
    monkeypatch.setattr(choose.GATHER, "run", None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for i, grid in enumerate([(20, 12), (16, 8), (33, 17), (40, 40), (1, 3), (9, 70)]):
        for radius in (2, 8, 16):
            q, k, v = tensors(grid, text=(0, 1, 64, 77)[i % 4], batch=1 + i % 2, heads=2 + i % 3)
            # Every size its own scale too, as with proportional attention, and every other one its own query rows.
            options = {"grid": grid, "spec": ClearSpec(radius, 1 + i % 3), "scale": 0.1 + 0.01 * i}
            if i % 2 == 0:
                options["query_rows"] = range(grid[0] // 4, 1 + grid[0] // 2)
                q = q[:, :, : q.shape[2] - (grid[0] - len(options["query_rows"])) * grid[1]]
            found = clear_attention(q, k, v, backend="flex", **options)
            torch.testing.assert_close(found, clear_attention(q, k, v, backend="dense", **options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@torch._dynamo.config.patch(recompile_limit=1)
def test_kernels_of_many_kinds_do_not_use_up_torchs_limit():
    """torch compiles one code eight times and then raises; number types, head sizes and more are each a code."""
    torch._dynamo.reset()
    for dtype in (torch.float32, torch.bfloat16):
        for head_dim in (64, 32):
            q, k, v = (one.to(dtype) for one in tensors(head_dim=head_dim))
            clear_attention(q, k, v, grid=(20, 21), spec=WINDOW, backend="flex")
    assert not choose._dropped and not choose._logged


@pytest.mark.slow
def test_a_kernel_left_on_disk_by_a_process_of_fewer_threads(tmp_path):
    """The kernel has buffers for the threads it was compiled for; torch would hand it to a process of any number."""
    code = (
        "import torch; from clear_core import ClearSpec, clear_attention\n"
        "q, k, v = torch.randn(3, 1, 2, 9 + 24 * 32, 64, generator=torch.Generator().manual_seed(0)).unbind()\n"
        "of = lambda backend: clear_attention(q, k, v, grid=(24, 32), spec=ClearSpec(3), backend=backend)\n"
        "torch.testing.assert_close(of('flex'), of('dense'))\n"
    )
    for threads in ("1", "4"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


def test_a_compiled_model_takes_the_window_of_each_call():
    def model(q, k, v, grid, spec, backend):
        return clear_attention(q * 1.0, k, v, grid=grid, spec=spec, backend=backend) + 0.0

    compiled = torch.compile(model, backend="eager")
    q, k, v = tensors((12, 35), text=0)
    for backend in ("gather", "flex"):
        for grid, spec in [((12, 35), ClearSpec(3)), ((35, 12), ClearSpec(3)), ((12, 35), ClearSpec(5))]:
            expected = clear_attention(q, k, v, grid=grid, spec=spec, backend="dense")
            torch.testing.assert_close(compiled(q, k, v, grid, spec, backend), expected)


@pytest.mark.parametrize("missing", [("compute_q_blocks",), ("compute_q_blocks", "seq_lengths")], ids=str)
def test_older_versions_of_torch_get_lists_they_can_transpose(missing, monkeypatch):
    """torch 2.5 has neither argument; its block mask is transposed at once and as wide as it is long."""
    from torch.nn.attention.flex_attention import BlockMask

    from clear_core.attention.tiling.plan import tile_plan

    original = BlockMask.from_kv_blocks

    if len(missing) == 1:

        def from_kv_blocks(
            kv_num_blocks,
            kv_indices,
            full_kv_num_blocks=None,
            full_kv_indices=None,
            BLOCK_SIZE=128,
            mask_mod=None,
            seq_lengths=None,
        ):
            return original(
                kv_num_blocks,
                kv_indices,
                full_kv_num_blocks,
                full_kv_indices,
                BLOCK_SIZE=BLOCK_SIZE,
                mask_mod=mask_mod,
                seq_lengths=seq_lengths,
            )
    else:

        def from_kv_blocks(
            kv_num_blocks, kv_indices, full_kv_num_blocks=None, full_kv_indices=None, BLOCK_SIZE=128, mask_mod=None
        ):
            return original(
                kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, BLOCK_SIZE=BLOCK_SIZE, mask_mod=mask_mod
            )

    plan = tile_plan(SequenceLayout(70, (33, 17)), ClearSpec(6), CPU)
    expected = flex.block_mask.__wrapped__(plan, needs_grad=False)
    monkeypatch.setattr(BlockMask, "from_kv_blocks", from_kv_blocks)
    found = flex.block_mask.__wrapped__(plan, needs_grad=False)
    assert found.q_indices is not None
    assert found.seq_lengths == expected.seq_lengths
    assert torch.equal(found.to_dense(), expected.to_dense())
