"""The overview of what is outside the windows: against the formula in float64, and what may not be combined with it."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import choose, overview
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.call import CallKind
from clear_core.attention.overview_merge import OverviewBias
from clear_core.attention.overview_table import overview_table
from clear_core.attention.pool import mean_weight
from clear_core.cost import clear_pairs, dense_pairs
from clear_core.effective import Effective, Inactive
from clear_core.families import FLUX1, ModelShape
from clear_core.settings import ClearSettings
from tests.support import attention_cases, bias_cases, interpreted_flex

BACKENDS = ("dense", "gather")


def drawn(seed):
    """A random call with an overview: every second one has a mask."""
    draw = random.Random(seed)
    layout = SequenceLayout(
        draw.choice([0, 1, 7]), (draw.randint(1, 13), draw.randint(1, 13)), draw.choice([0, 0, 1, 5])
    )
    spec = ClearSpec(draw.choice([1, 2, 3, 5, 9, 30]), draw.choice([1, 2, 3, 4, 5]), overview=True)
    kind = draw.choice(["text", "free", "level", "pairs", "pairs"])
    dtype, masks = draw.choice([torch.bool, torch.float32]), (draw.choice([1, 2]), draw.choice([1, 3]))
    return bias_cases.Case(seed, kind, dtype, layout, spec, 2, 3, masks, False, draw.choice([None, 1, 20_000]))


def run(case, backend, dtype=torch.float32, masked=False, **options):
    return clear_attention(
        *case.inputs(dtype),
        grid=case.layout.grid,
        spec=case.spec,
        scale=0.3,
        reference_tokens=case.layout.reference,
        bias=case.bias() if masked else None,
        chunk_bytes=case.chunk_bytes,
        backend=backend,
        return_lse=True,
        **options,
    )


def expected(case, dtype=torch.float32, masked=False):
    weight = mean_weight(case.spec.down_factor)
    bias = case.bias() if masked else None
    return bias_cases.written_out(*case.inputs(dtype), case.layout, case.spec, weight, 0.3, bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("case", [drawn(seed) for seed in range(40)], ids=str)
def test_is_the_formula(case, backend, masked):
    for found, wanted in zip(run(case, backend, masked=masked), expected(case, masked=masked), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("radius", [1, 4, 9, 40])
@pytest.mark.parametrize("grid", [(1, 1), (17, 11), (20, 24)], ids=str)
def test_with_cells_of_one_token_it_is_dense_attention(grid, radius, backend):
    q, k, v = torch.randn(3, 2, 2, 5 + grid[0] * grid[1], 32, generator=torch.Generator().manual_seed(0)).unbind()
    spec = ClearSpec(radius, 1, overview=True)
    found, lse = clear_attention(q, k, v, grid=grid, spec=spec, backend=backend, return_lse=True)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=2e-6)
    torch.testing.assert_close(lse, (q @ k.transpose(-1, -2) * 32**-0.5).logsumexp(-1), rtol=0, atol=4e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_the_same_in_each_cell_lose_nothing(backend):
    """The mean of equal keys is exact: what is lost otherwise is the spread inside the cells alone."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 2, 3 + 12 * 16, 32, generator=generator)
    cells = torch.randn(2, 1, 2, 3, 4, 32, generator=generator)
    image = cells.repeat_interleave(4, 3).repeat_interleave(4, 4).flatten(3, 4)
    k, v = torch.cat([torch.randn(2, 1, 2, 3, 32, generator=generator), image], dim=3)
    found = clear_attention(q, k, v, grid=(12, 16), spec=ClearSpec(5, 4, overview=True), backend=backend)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=4e-6)
    pooled = clear_attention(q, k, v, grid=(12, 16), spec=ClearSpec(5, 4), backend=backend)
    assert (pooled - F.scaled_dot_product_attention(q, k, v)).abs().max() > 0.1


# In bfloat16 the logarithms are rounded too, by up to half a percent of a weight.
@pytest.mark.parametrize("dtype, most", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(30))
def test_gather_is_dense(seed, dtype, most):
    case = dataclasses.replace(attention_cases.Case.draw(seed), overview=True, weight="mean")
    found = case.run(dtype, "gather", chunk_bytes=case.chunk_bytes)
    assert found.dtype == dtype
    assert attention_cases.error(found, case.oracle(dtype)) <= most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [range(0), range(1), range(4, 9), range(7, 11)], ids=str)
def test_rows_are_those_of_the_whole(rows, backend):
    q, k, v = torch.randn(3, 1, 2, 5 + 11 * 13 + 2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    options = {"grid": (11, 13), "spec": ClearSpec(3, 4, overview=True), "reference_tokens": 2, "backend": backend}
    own = torch.cat([torch.arange(5), 5 + torch.arange(rows.start * 13, rows.stop * 13), torch.arange(148, 150)])
    whole = clear_attention(q, k, v, **options)[:, :, own]
    found = clear_attention(q[:, :, own], k, v, query_rows=rows, **options)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-6)


# A radius whose windows hold the whole grid for some queries, and one that leaves something out for all of them.
@pytest.mark.parametrize("radius", [3, 8])
@pytest.mark.parametrize("text", [0, 4])
def test_gradients_are_those_of_dense(text, radius):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 2, text + 9 * 7, 16, generator=generator).requires_grad_() for _ in range(3)]
    slope = torch.randn(1, 2, text + 9 * 7, 16, generator=generator)
    found = []
    for backend in ("gather", "dense"):
        out = clear_attention(*leaves, grid=(9, 7), spec=ClearSpec(radius, 2, overview=True), backend=backend)
        found.append(torch.autograd.grad((out * slope).sum(), leaves))
    for mine, theirs in zip(*found, strict=True):
        assert theirs.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes, lines", [(20_000, False), (100_000, True)])
def test_many_queries_are_weighed_in_pieces(chunk_bytes, lines, monkeypatch):
    """What is added to a chunk's scores keeps to the memory limit, and so do the lines that it is copied from."""
    made, rows = [], OverviewBias.rows

    def noted(bias, first, stop):
        assert (bias._lines is not None) == lines
        made.append(rows(bias, first, stop))
        return made[-1]

    monkeypatch.setattr(OverviewBias, "rows", noted)
    monkeypatch.setattr("clear_core.attention.workers.workers_of", lambda device, grad: 1)
    q, k, v = torch.randn(3, 1, 2, 24 * 24, 16).unbind()
    options = {"grid": (24, 24), "spec": ClearSpec(4, 2, True)}
    found = clear_attention(q, k, v, backend="gather", chunk_bytes=chunk_bytes, **options)
    assert len(made) > 4 and max(one.numel() * one.element_size() for one in made) <= chunk_bytes
    torch.testing.assert_close(found, clear_attention(q, k, v, backend="dense", **options), rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid", [(1, 1), (2, 9), (13, 11), (20, 24), (30, 7)], ids=str)
@pytest.mark.parametrize("down_factor", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8, 13, 30, 200])
def test_the_table_holds_what_is_counted(radius, down_factor, grid):
    """By its indices, as kernels find it, and far from a query, where kernels do not look it up."""
    spec = ClearSpec(radius, down_factor, overview=True).within(grid)
    table = overview_table(grid, spec, torch.device("cpu"))
    image = torch.arange(grid[0] * grid[1], dtype=torch.int32)
    y, x = image // grid[1], image % grid[1]
    counted = overview.tokens_outside(y, x, grid, spec).float().log()
    row, column = table.rows[y][:, :, None], table.columns[x][:, None]
    assert torch.equal(table.logs[row, column].flatten(1), counted)
    top, left = table.starts[0] - y[:, None], table.starts[1] - x[:, None]
    place = top.clamp(0, table.last[0]) * table.logs.shape[1] + left.clamp(0, table.last[1]) + table.bases
    assert torch.equal(table.logs.flatten()[place], counted)
    far = (top <= 0) | (top >= table.last[0])
    assert torch.equal(table.whole_logs.expand_as(counted)[far], counted[far])
    assert table.all_seen == bool(counted.isneginf().all(dim=1).any())


def test_a_table_is_small_whatever_the_radius():
    """And for a large grid; tables are made once."""
    for grid, spec, most in [((256, 256), ClearSpec(32, 4, True), 2**18), ((64, 64), ClearSpec(10**6, 4, True), 2**18)]:
        table = overview_table(grid, spec.within(grid), torch.device("cpu"))
        assert table.nbytes <= most
        assert overview_table(grid, spec.within(grid), torch.device("cpu")) is table


def test_counts_of_a_cut_cell():
    # The last column of a (2, 3) grid is a cell of two tokens, of which the query beside it sees one.
    count = overview.tokens_outside(torch.tensor([0, 1]), torch.tensor([1, 0]), (2, 3), ClearSpec(2, 2, True))
    assert count.tolist() == [[0, 0], [0, 2]]


CARD = CallKind(torch.device("cuda", 0), torch.float16, 64, (64, 64), ClearSpec(8, 4, overview=True))


@pytest.mark.parametrize("backend", [choose.FLEX, choose.TRITON], ids=lambda one: one.name)
def test_kernels_have_no_gradient_with_an_overview(backend):
    assert "no gradient" in backend.unavailable(CARD._replace(needs_grad=True))


FLEX_CASES = [drawn(seed) for seed in range(100, 130)]


@pytest.mark.parametrize("case", FLEX_CASES, ids=str)
@pytest.mark.slow
def test_flex_is_the_formula(case, monkeypatch):
    """Compiled here, which takes longest; what is emitted for a card is in test_flex_emitted.py."""
    monkeypatch.setattr(choose, "_logged", set())
    found = clear_attention(
        *case.inputs(torch.float32),
        grid=case.layout.grid,
        spec=case.spec,
        scale=0.3,
        reference_tokens=case.layout.reference,
        backend="flex",
    )
    torch.testing.assert_close(found.double(), expected(case)[0], rtol=2e-6, atol=4e-6)
    assert not choose._logged, "another backend ran instead"


def test_flex_compiles_once_for_all_overviews():
    """Tables and lists of every length, radius and grid; the kernel without an overview is another one."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        q = next(i for i, one in enumerate(inputs) if isinstance(one, torch.Tensor))
        return lambda *arguments: (torch.zeros_like(arguments[q]),)

    torch._dynamo.reset()
    fused = torch.compile(flex._fused, dynamic=True, fullgraph=True, backend=backend)
    for grid, radius, down_factor, heads in [
        ((45, 13), 3, 2, 2),
        ((20, 41), 8, 4, 3),
        ((64, 64), 16, 4, 24),
        ((24, 8), 40, 3, 2),
        ((1, 3), 2, 1, 2),
        ((16, 16), 5, 1, 2),
    ]:
        case = interpreted_flex.Case("float16-16-overview", grid, 7, 2, radius, down_factor, 1, heads)
        interpreted_flex.run_as_on_a_card(fused, case.call())
    torch._dynamo.reset()
    assert len(graphs) == 1


def test_what_an_overview_refuses():
    q = torch.zeros(1, 1, 66, 16)
    spec = ClearSpec(2, 2, overview=True)
    with pytest.raises(ValueError, match="spatial_weight was given, but .*overview 2 x 2.* plain means"):
        clear_attention(q, q, q, grid=(8, 8), spec=spec, spatial_weight=mean_weight(2))


@pytest.mark.parametrize("seed", range(40))
def test_pairs_are_those_that_are_seen(seed):
    case, draw = drawn(seed), random.Random(seed)
    (height, width), spec = case.layout.grid, case.spec
    rows = range(draw.randint(0, height), height)
    image = torch.arange(rows.start * width, height * width, dtype=torch.int32)
    seen = (overview.tokens_outside(image // width, image % width, (height, width), spec) > 0).sum()
    windows = clear_pairs(case.layout, ClearSpec(spec.radius), rows)
    assert clear_pairs(case.layout, spec, rows) == windows + int(seen)


def test_pairs_of_cells_of_one_token_are_the_dense_ones():
    layout = SequenceLayout(7, (20, 31), 3)
    assert clear_pairs(layout, ClearSpec(6, 1, overview=True)) == dense_pairs(layout)


def test_effective_takes_an_overview_for_what_it_is():
    layout, shape = SequenceLayout(512, (256, 256)), ModelShape.usual(FLUX1)

    def of(*spec, layout=layout):
        return Effective.of(ClearSettings(ClearSpec(*spec)), shape, layout)

    assert of(8, 4, True).scale == of(8).scale < of(8, 4).scale
    # Cells that lie inside a window are not seen.
    assert of(8).pairs < of(8, 4, True).pairs < of(8, 4).pairs
    small = SequenceLayout(5, (6, 6))
    assert of(8, 2, True, layout=small).inactive is Inactive.COVERED
