"""Attention masks inside the windows: against a softmax written out in float64, for every shape a mask may have."""

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import AttentionBias
from clear_core.attention.backends import gather
from clear_core.attention.merge import merge
from tests.support.bias_cases import Case, cases, written_out


@pytest.mark.parametrize("backend", ["dense", "gather", "auto"])
@pytest.mark.parametrize("case", cases(100))
def test_a_mask_is_what_is_written_out(case, backend):
    found = case.run(backend, chunk_bytes=case.chunk_bytes)
    torch.testing.assert_close(found.double(), case.expected()[0], rtol=0, atol=3e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("case", cases(40))
def test_the_log_sum_exp_counts_the_mask(case, backend):
    found, lse = case.run(backend, return_lse=True, chunk_bytes=case.chunk_bytes)
    expected, expected_lse = case.expected()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
def test_the_log_sum_exp_is_float32_in_float64_too(backend):
    q = torch.randn(1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    options = {"grid": (9, 11), "spec": ClearSpec(4), "return_lse": True}
    lse = clear_attention(q, q, q, bias=bias, backend=backend, **options)[1]
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, clear_attention(q, q, q, backend="dense", **options)[1])


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 1.2e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("case", cases(60, kind="pairs", dtype=torch.float32)[:6] + cases(60, kind="text")[:6])
def test_half_precision(case, dtype, atol):
    """The mask is rounded to the dtype, as the host's attention does it."""
    found, expected = case.run("gather", dtype), case.expected(dtype, rounded=True)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_the_masks_of_the_sweep_matter():
    """The cases above would pass without looking at the mask only if it changed nothing."""
    changed = [
        not torch.allclose(case.expected()[0], case.expected(masked=False)[0], atol=1e-3)
        for case in map(Case.draw, range(60))
        if case.bias().shape[-1] and case.layout.length > 2
    ]
    assert sum(changed) > 0.9 * len(changed)


@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("kind", ["text", "free", "level"])
def test_many_pooled_keys(kind, return_lse, monkeypatch):
    """Merged where all image keys are alike to the mask; a row's own number for them is the pooled keys' too."""
    merged = []
    monkeypatch.setattr(gather, "merge", lambda *parts: merged.append(1) or merge(*parts))
    case = Case(8, kind, torch.float32, SequenceLayout(9, (51, 47), 3), ClearSpec(6, 2), 2, 2, (1, 2), False, None)
    found = case.run("gather", return_lse=return_lse)
    assert bool(merged) == (kind != "level")
    for one, expected in zip(found if return_lse else [found], case.expected()[: 1 + return_lse], strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("number", [False, -torch.inf], ids=["bool", "float"])
def test_a_query_that_sees_nothing_gets_zeros(number, backend):
    layout = SequenceLayout(5, (18, 20), 2)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.length, 16, generator=generator).requires_grad_() for _ in range(3))
    bias = torch.ones(1, 1, layout.length, layout.length).to(torch.bool if number is False else torch.float32)
    blind = [1, 40, 41, 366]
    bias[:, :, blind] = number
    options = {"grid": layout.grid, "spec": ClearSpec(4), "reference_tokens": 2, "bias": bias, "backend": backend}
    out = clear_attention(q, k, v, **options)
    assert out.isfinite().all()
    assert torch.equal(out[:, :, blind], torch.zeros(1, 2, 4, 16))
    assert (out.detach().abs().amax(dim=-1) > 0).sum() == 2 * (layout.length - 4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)))
    with torch.no_grad():
        _, lse = clear_attention(q, k, v, return_lse=True, **options)
    assert (lse == -torch.inf).nonzero()[:, 2].unique().tolist() == blind


@pytest.mark.parametrize("kind", ["text", "level", "pairs"])
def test_gradients_are_the_written_out_ones(kind):
    case = Case(7, kind, torch.float32, SequenceLayout(5, (18, 19), 2), ClearSpec(4), 2, 2, (2, 2), False, 200_000)
    towards = torch.randn(2, 2, case.layout.length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for attend in ("dense", "gather", written_out):
        q, k, v = (one.double().requires_grad_() for one in case.inputs())
        if attend is written_out:
            out = written_out(q, k, v, case.layout, case.spec, None, 0.3, case.bias())[0]
        else:
            out = clear_attention(
                q,
                k,
                v,
                grid=case.layout.grid,
                spec=case.spec,
                scale=0.3,
                reference_tokens=2,
                bias=case.bias(),
                backend=attend,
                chunk_bytes=case.chunk_bytes,
            )
        gradients.append(torch.autograd.grad(out, (q, k, v), towards))
    for found in gradients[:2]:
        for one, expected in zip(found, gradients[2], strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)


def test_a_mask_takes_no_more_memory_than_a_chunk(monkeypatch):
    """The numbers of one chunk's masks, for windows and for text queries."""
    case = Case(2, "pairs", torch.float32, SequenceLayout(40, (50, 48)), ClearSpec(5), 1, 4, (1, 4), False, 500_000)
    made = []
    for name in ("tiles", "rows"):
        original = getattr(AttentionBias, name)

        def watched(self, *arguments, original=original):
            made.append(original(self, *arguments))
            return made[-1]

        monkeypatch.setattr(AttentionBias, name, watched)
    case.run("gather", chunk_bytes=case.chunk_bytes)
    smallest_tile = 4 * 4 * 16 * 16 * (40 + 24 * 24)
    assert len(made) > 10
    assert max(one.numel() * 4 for one in made) <= max(case.chunk_bytes, 2 * smallest_tile)
