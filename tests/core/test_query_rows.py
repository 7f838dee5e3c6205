"""Queries of some image rows: these rows of the whole result, for the cost of these rows."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from clear_core import ClearSpec, SequenceLayout, clear_attention, cost
from clear_core.attention import AttentionBias, choose
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.backends.triton import backend as triton_backend
from tests.support.query_row_cases import Case

CASES = [Case.draw(seed) for seed in range(200)]
FLEX_CASES = [Case.draw(seed, head_dims=(64, 50), plain=True) for seed in range(1000, 1200)]


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_those_of_the_whole_result(case, backend):
    found, expected = case.run(backend, return_lse=case.return_lse), case.expected()
    for one, other in zip(found if case.return_lse else (found,), expected, strict=False):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (i >= 40)) for i, case in enumerate(FLEX_CASES)],
)
def test_rows_by_flex(case, monkeypatch):
    monkeypatch.setattr(choose.GATHER, "run", lambda call: pytest.fail("flex fell back to gather"))
    torch.testing.assert_close(case.run("flex"), case.expected()[0], rtol=2e-6, atol=4e-6)


def test_the_cases_are_of_every_kind():
    for cases in (CASES, FLEX_CASES[:40]):
        kinds = {min(len(case.rows), 2) for case in cases}
        assert kinds == {0, 1, 2}
        assert any(case.rows.start > 0 and case.rows.stop < case.layout.grid[0] for case in cases if len(case.rows) > 1)
        for name in ("strided", "chunk_bytes"):
            assert len({getattr(case, name) for case in cases}) > 1
        assert {case.spec.pools for case in cases} == {bool(case.layout.reference) for case in cases} == {True, False}
    assert {case.mask for case in CASES} == {"", "text", "pairs"}
    assert any(case.layout.length == case.layout.image and not case.rows for case in CASES), "no query at all"


@pytest.mark.parametrize("backend", ["auto", "dense", "gather"])
def test_all_rows_are_the_whole_call(backend):
    q, k, v = torch.randn(3, 1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0)).unbind()
    options = {"grid": (9, 11), "spec": ClearSpec(4), "backend": backend}
    assert torch.equal(clear_attention(q, k, v, query_rows=range(9), **options), clear_attention(q, k, v, **options))


@pytest.mark.parametrize("down_factor", [1, 3])
def test_gradients_are_the_oracles(down_factor):
    generator = torch.Generator().manual_seed(0)
    grid, rows, text = (18, 9), range(5, 12), 4
    gradients = []
    for backend in ("dense", "gather"):
        generator.manual_seed(0)
        q = torch.randn(1, 2, text + len(rows) * 9, 16, generator=generator).requires_grad_()
        k, v = (torch.randn(1, 2, text + 18 * 9, 16, generator=generator).requires_grad_() for _ in range(2))
        out = clear_attention(q, k, v, grid=grid, spec=ClearSpec(4, down_factor), query_rows=rows, backend=backend)
        towards = torch.randn(out.shape, generator=generator)
        gradients.append(torch.autograd.grad((out * towards).sum(), (q, k, v)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- cost, counted where the pairs are computed ----

LAYOUT = SequenceLayout(64, (96, 64), 8)
SPECS = [ClearSpec(8), ClearSpec(8, 4)]
ROWS = [range(40, 52), range(0, 8), range(95, 96), range(30, 30)]


def call(backend: str, spec: ClearSpec, rows: range) -> None:
    length = LAYOUT.length - LAYOUT.image + len(rows) * LAYOUT.grid[1]
    q, k = torch.zeros(1, 2, length, 16), torch.zeros(1, 2, LAYOUT.length, 16)
    clear_attention(
        q, k, k, grid=LAYOUT.grid, spec=spec, reference_tokens=8, query_rows=rows, backend=backend, chunk_bytes=10**7
    )


@pytest.fixture
def count(monkeypatch) -> Callable[[str, ClearSpec, range], int]:
    """Query-key pairs of one head that a call computes."""
    monkeypatch.setattr(choose, "_dropped", {})
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    monkeypatch.setattr(choose.TRITON, "unavailable", lambda kind: None)
    pairs = []
    attention = F.scaled_dot_product_attention

    def counted(q, k, v, **options):
        pairs.append(math.prod(q.shape[:3]) * k.shape[2])
        return attention(q, k, v, **options)

    def compiled(q, k, v, mask, score_mod, options, return_lse):
        blocks = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
        pairs.append(q.shape[0] * blocks * math.prod(mask.BLOCK_SIZE))
        return torch.zeros_like(q)

    def launch(shape, tensors, plan, scale):
        blocks = int(plan.partial_count.sum() + plan.full_count.sum())
        pairs.append(
            2 * (blocks * plan.block_pairs + len(plan.partial) * plan.block_queries * tensors.prefix_k.shape[2])
        )

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(flex, "_compiled", lambda threads: compiled)
    monkeypatch.setattr(triton_backend, "launch", launch)

    def run(backend: str, spec: ClearSpec, rows: range) -> int:
        pairs.clear()
        call(backend, spec, rows)
        return sum(pairs) // 2

    return run


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("backend", ["dense", "gather", "flex", "triton"])
def test_the_pairs_are_those_of_the_rows(backend, spec, rows, count):
    found, exact = count(backend, spec, rows), cost.clear_pairs(LAYOUT, spec, rows)
    outside = (LAYOUT.text + LAYOUT.reference) * LAYOUT.length
    if backend == "dense":
        pooled = math.prod(spec.cells(LAYOUT.grid))
        assert found == outside + len(rows) * LAYOUT.grid[1] * (LAYOUT.length + pooled)
        return
    assert found >= exact
    whole = count(backend, spec, range(LAYOUT.grid[0]))
    share = len(rows) / LAYOUT.grid[0]
    if backend == "gather" or len(rows) >= 8:
        assert found - outside <= 1.6 * share * (whole - outside)
    else:
        # A kernel's query tile is 8 rows high at least.
        assert found - outside <= 1.6 * 8 / LAYOUT.grid[0] * (whole - outside)
    if not rows:
        assert found == exact == outside


@pytest.mark.parametrize("rows", [range(3, 9), range(7, 7), range(11)], ids=str)
def test_exact_pairs_of_rows_counted_one_by_one(rows):
    layout, spec = SequenceLayout(3, (11, 6), 2), ClearSpec(4, 2)
    tokens = [(y, x) for y in range(11) for x in range(6)]
    window = sum(spec.sees(a - c, b - d) for a, b in tokens if a in rows for c, d in tokens)
    assert cost.clear_pairs(layout, spec, rows) == 5 * layout.length + len(rows) * 6 * (5 + 6 * 3) + window


# ---- what is refused ----


@pytest.mark.parametrize(
    "rows, tokens, message",
    [
        (range(2, 5), 5 + 3 * 4, "query_rows is range.2, 5.; expected a range of step 1 inside the grid's 3 rows"),
        (range(-1, 2), 5 + 3 * 4, "query_rows is range.-1, 2."),
        (range(2, 1), 5, "query_rows is range.2, 1."),
        (range(0, 3, 2), 5 + 2 * 4, "query_rows is range.0, 3, 2.; expected a range of step 1"),
        ((0, 2), 5 + 2 * 4, "query_rows is .0, 2.; expected a range"),
        (range(0, 2), 5 + 3 * 4, "q has 17 tokens, but text, 2 rows of 4 image tokens and reference tokens are 13"),
    ],
)
def test_bad_rows_are_named(rows, tokens, message):
    q, k = torch.randn(1, 2, tokens, 16), torch.randn(1, 2, 17, 16)
    with pytest.raises(ValueError, match=message):
        clear_attention(q, k, k, grid=(3, 4), spec=ClearSpec(2), query_rows=rows)


@pytest.mark.parametrize(
    "k, v, message",
    [
        (torch.randn(1, 3, 17, 16), None, r"k has shape \(1, 3, 17, 16\); expected q's batch, heads and head size"),
        (torch.randn(2, 17, 16), None, r"k has shape \(2, 17, 16\)"),
        (None, torch.randn(1, 2, 16, 16), r"v has shape \(1, 2, 16, 16\); expected k's"),
    ],
)
def test_keys_must_fit_the_queries(k, v, message):
    q = torch.randn(1, 2, 5 + 4, 16)
    k = torch.randn(1, 2, 17, 16) if k is None else k
    with pytest.raises(ValueError, match=message):
        clear_attention(q, k, k if v is None else v, grid=(3, 4), spec=ClearSpec(2), query_rows=range(1, 2))


def test_a_mask_for_other_rows_is_refused():
    layout = SequenceLayout(5, (3, 4))
    bias = AttentionBias.of(torch.zeros(1, 1, 9, 17), layout, range(0, 1))
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 17, 16)
    options = {"grid": (3, 4), "spec": ClearSpec(2), "bias": bias}
    clear_attention(q, k, k, query_rows=range(0, 1), **options)
    with pytest.raises(ValueError, match=r"bias was made for the queries of range\(0, 1\); expected range\(1, 2\)"):
        clear_attention(q, k, k, query_rows=range(1, 2), **options)
