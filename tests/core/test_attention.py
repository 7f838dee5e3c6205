"""Every backend against the oracle, on many random cases, with uninitialised memory poisoned."""

import dataclasses
from functools import partial

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import choose
from clear_core.attention.backends import gather
from clear_core.attention.merge import merge
from tests.support.attention_cases import TOLERANCE, Case, assert_close, cases


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is read before it was written is NaN."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", cases(300, every_day=60))
def test_gather_is_dense(case, dtype):
    found = case.run(dtype, "gather", chunk_bytes=case.chunk_bytes)
    assert_close(found, case.oracle(dtype), dtype, case)


@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_pooled_keys_are_merged_exactly(dtype, return_lse, monkeypatch):
    merged = []
    monkeypatch.setattr(gather, "merge", lambda *parts: merged.append(1) or merge(*parts))
    case = dataclasses.replace(Case.draw(5), grid=(51, 47), text=9, reference=3, radius=6, down_factor=2, batch=2)
    found, expected = (run(dtype, return_lse=return_lse) for run in (partial(case.run, backend="gather"), case.oracle))
    assert merged
    if return_lse:
        # Pooled keys are rounded to the dtype before they are scored.
        atol = 4e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=atol)
        found, expected = found[0], expected[0]
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", cases(300, every_day=30))
def test_auto_and_dense_are_dense_in_float32(case, dtype):
    expected = case.oracle(dtype)
    assert_close(case.run(dtype, "auto"), expected, dtype, case)
    assert_close(case.run(dtype, "dense", chunk_bytes=case.chunk_bytes), expected, dtype, case)


@pytest.fixture
def flex_does_not_fall_back(monkeypatch):
    """A kernel that fails would be replaced by ``gather``, and the test would see nothing of it."""

    def refuse(call):
        raise AssertionError("flex fell back to gather")

    monkeypatch.setattr(choose.GATHER, "run", refuse)


# One size of head, or rather two that the kernel sees as one: each other one would compile for half a minute.
@pytest.mark.parametrize("case", cases(300, every_day=110, head_dims=(64, 50)))
def test_flex_is_dense(case, flex_does_not_fall_back):
    found = case.run(torch.float32, "flex", chunk_bytes=case.chunk_bytes)
    assert_close(found, case.oracle(torch.float32), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(300, every_day=300, head_dims=(128, 100)))
def test_flex_is_dense_in_bfloat16(case, flex_does_not_fall_back):
    found = case.run(torch.bfloat16, "flex", chunk_bytes=case.chunk_bytes)
    assert_close(found, case.oracle(torch.bfloat16), torch.bfloat16, case)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 17, 32, 48, 65, 128])
def test_flex_takes_every_head_size(head_dim, flex_does_not_fall_back):
    torch._dynamo.reset()
    case = Case.draw(3, head_dims=(head_dim,))
    assert_close(case.run(torch.float32, "flex"), case.oracle(torch.float32), torch.float32)


@pytest.mark.parametrize("backend", ["gather", "dense"])
@pytest.mark.parametrize("case", cases(40, every_day=25))
def test_log_sum_exp(case, backend):
    found, lse = case.run(torch.float32, backend, return_lse=True, chunk_bytes=case.chunk_bytes)
    expected, expected_lse = case.oracle(torch.float32, return_lse=True)
    assert_close(found, expected, torch.float32)
    assert lse.dtype == torch.float32 and lse.shape == found.shape[:3]
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
def test_log_sum_exp_of_tokens_that_are_not_contiguous(backend):
    q, k, v = torch.randn(3, 1, 2, 16, 5 + 9 * 11, generator=torch.Generator().manual_seed(0)).transpose(-1, -2)
    options = {"grid": (9, 11), "spec": ClearSpec(4), "return_lse": True}
    found = clear_attention(q, k, v, backend=backend, **options)
    expected = clear_attention(*(one.contiguous() for one in (q, k, v)), backend="dense", **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("down_factor", [1, 3])
def test_gather_has_the_oracles_gradients(down_factor):
    layout, spec = SequenceLayout(5, (18, 37), 2), ClearSpec(4, down_factor)
    weight = torch.rand(down_factor, down_factor, generator=torch.Generator().manual_seed(1)) + 0.5
    gradients = []
    for backend in ("dense", "gather"):
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(1, 2, layout.length, 16, generator=generator, dtype=torch.float64).requires_grad_()
            for _ in range(3)
        ]
        inputs.append(weight.clone().requires_grad_())
        out = clear_attention(
            *inputs[:3],
            grid=layout.grid,
            spec=spec,
            spatial_weight=inputs[3],
            reference_tokens=2,
            backend=backend,
            chunk_bytes=200_000,
        )
        towards = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        gradients.append(torch.autograd.grad(out, inputs, towards, allow_unused=down_factor == 1))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (gradients[1][3] is None) == (down_factor == 1)


def test_output_of_gather_needs_no_copy_for_the_hosts_layout():
    case = Case.draw(4)
    out = case.run(torch.float32, "gather")
    batch, _heads, length, _head_dim = out.shape
    assert out.transpose(1, 2).is_contiguous()
    assert out.transpose(1, 2).reshape(batch, length, -1).data_ptr() == out.data_ptr()
