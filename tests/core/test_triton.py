"""The Triton kernel in Triton's interpreter against the oracle; its key lists."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.backends.triton import launch as triton_launch
from clear_core.attention.tiling.order import query_tile_size
from clear_core.attention.tiling.plan import tile_plan
from tests.support import interpreted_triton
from tests.support.interpreted_triton import Case

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
# The first: rows of which the first blocks show no key, nothing seen by all, ragged on both sides.
CASES = [
    dataclasses.replace(Case.draw(0), grid=(25, 19), text=0, reference=0, radius=4, down_factor=1),
    *(Case.draw(seed) for seed in range(1, 150)),
]
# The first: query tiles that begin inside a key tile, whole ones and one cut by the last row.
ROW_CASES = [
    dataclasses.replace(Case.draw_rows(0), grid=(40, 17), text=7, radius=16, rows=range(3, 37)),
    *(Case.draw_rows(seed) for seed in range(1, 200)),
]


# With an overview. The first: blocks of cells far above and far below the queries, a last one cut, cells cut at both
# borders, rows of few cells.
OVERVIEW_CASES = [
    dataclasses.replace(
        Case.draw_overview(0),
        grid=(98, 7),
        text=70,
        reference=0,
        radius=3,
        down_factor=2,
        heads=1,
        blocks=(64, 16),
        rows=range(43, 55),
    ),
    *(Case.draw_overview(seed) for seed in range(1, 150)),
]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    """Calls functions of ``interpreted_triton`` in a process where Triton interprets its kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # Read when Triton is imported, so not in this process; a spawned one inherits it.
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(interpreted_triton.prepare, tmp_path_factory.mktemp("cache")).result()
    with pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "case", [*CASES[:50], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[50:])], ids=str
)
def test_the_kernel_is_dense(case, dtype, interpreter):
    out, lse = interpreter(interpreted_triton.errors, case, dtype)
    assert out <= TOLERANCE[dtype]
    # Pooled keys are rounded to the dtype before they are scored.
    assert lse <= (4e-6 if dtype == torch.float32 else 1e-2)
    assert interpreter(interpreted_triton.said) == []


@pytest.mark.parametrize(
    "case", [*ROW_CASES[:16], *(pytest.param(case, marks=pytest.mark.slow) for case in ROW_CASES[16:])], ids=str
)
def test_rows_by_the_kernel(case, interpreter):
    out, lse = interpreter(interpreted_triton.errors, case, torch.float32)
    assert out <= TOLERANCE[torch.float32]
    assert lse <= 4e-6
    assert interpreter(interpreted_triton.said) == []


@pytest.mark.parametrize(
    "case",
    [*OVERVIEW_CASES[:10], *(pytest.param(case, marks=pytest.mark.slow) for case in OVERVIEW_CASES[10:])],
    ids=str,
)
def test_an_overview_by_the_kernel(case, interpreter):
    out, lse = interpreter(interpreted_triton.errors, case, torch.float32)
    assert out <= TOLERANCE[torch.float32]
    assert lse <= 4e-6
    assert interpreter(interpreted_triton.said) == []


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_pooling_kernel_is_its_plain_twin(dtype, interpreter):
    """Cut cells, cells larger than the grid, weights that cancel, one program and several, heads and items apart."""
    for error in interpreter(interpreted_triton.pooling_errors, dtype):
        assert error <= TOLERANCE[dtype]


def plan_of(case):
    layout = SequenceLayout(case.text, case.grid, case.reference)
    halves = case.blocks[0] == 64
    return tile_plan(layout, ClearSpec(case.radius, case.down_factor), CPU, case.rows, halves)


def test_the_cases_reach_every_branch():
    plans = [plan_of(case) for case in CASES]
    lists = [triton_launch.tile_lists(plan) for plan in plans]
    row_plans = [plan_of(case) for case in ROW_CASES[:16] if case.rows]
    assert len(row_plans) < 16, "no row at all"
    assert {plan.query_rows.start % 8 > 0 for plan in row_plans} == {True, False}
    assert {plan.queries.upright for plan in row_plans} == {True, False}
    assert any(plan.full_count.any() for plan in row_plans)
    assert {case.blocks for case in CASES} == set(interpreted_triton.BLOCKS)
    assert {case.scale for case in CASES} >= {None, 0.0, -0.2}
    assert {case.integers for case in CASES} == {True, False}
    assert {(plan.halves, plan.queries.upright) for plan in plans} == {(a, b) for a in (0, 1) for b in (0, 1)}
    assert {(plan.halves, plan.query_rows.start % 8 > 0) for plan in row_plans} >= {(True, True), (False, True)}
    assert {case.down_factor > 1 for case in CASES} == {plan.queries.upright for plan in plans} == {True, False}
    assert any(plan.full_count.any() for plan in plans)
    assert any(one.circle_count.any() for one in lists)
    assert any((one.circle_count < one.partial_count).any() for one in lists)
    # Whole blocks of what everyone sees, the rest of one, and none.
    assert {plan.prefix // 64 > 0 for plan in plans} == {plan.prefix % 64 > 0 for plan in plans} == {True, False}


@pytest.mark.parametrize("token_stride, head_stride", [(2**26 + 16, 2**25), (16, 2**31 + 48)], ids=["tokens", "heads"])
def test_offsets_past_31_bits(token_stride, head_stride, interpreter, tmp_path):
    error, last = interpreter(interpreted_triton.far_apart, tmp_path, token_stride, head_stride)
    assert last > 2**31
    assert error <= TOLERANCE[torch.float16]


def test_the_self_test_passes_and_finds_a_wrong_window(interpreter):
    assert interpreter(interpreted_triton.refusal, torch.float32) is None
    assert "off by" in interpreter(interpreted_triton.refusal_of_another_window)


@pytest.mark.parametrize("part", ["cell_logs", "table"])
def test_the_self_test_finds_a_wrong_overview(part, interpreter):
    assert "off by" in interpreter(interpreted_triton.refusal_of_other_weights, part)


def test_the_self_test_passes_with_an_overview(interpreter):
    assert interpreter(interpreted_triton.refusal_of_other_weights, None) is None


def test_the_interpreters_broken_bfloat16_is_refused(interpreter):
    assert "off by" in interpreter(interpreted_triton.refusal, torch.bfloat16)


# ---- which keys it visits ----


@pytest.mark.parametrize(
    "grid, radius",
    [
        ((16, 8), 3),
        ((8, 16), 40),
        ((19, 13), 5),
        ((13, 29), 8),
        ((40, 7), 16),
        ((1, 33), 2),
        ((24, 24), 20),
        ((3, 3), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("halves", [False, True], ids=["query tiles", "halves"])
def test_lists_hold_the_tiles_that_are_seen(grid, radius, halves):
    layout, spec = SequenceLayout(0, grid), ClearSpec(radius)
    plan = tile_plan(layout, spec, CPU, halves=halves)
    lists = triton_launch.tile_lists(plan)
    seen = image_rows_mask(range(grid[0]), layout, spec, CPU).unflatten(1, grid).unflatten(0, grid)
    upright = plan.queries.upright
    height, width = query_tile_size(upright)
    assert len(lists.partial) == plan.query_tiles * (2 if halves else 1)
    for tile in range(len(lists.partial)):
        whole_tile, second = divmod(tile, 2) if halves else (tile, 0)
        y, x = whole_tile // plan.queries.tiles[1] * height, whole_tile % plan.queries.tiles[1] * width
        if halves:
            y, x = y + 8 * second * upright, x + 8 * second * (not upright)
        tall, wide = (8, 8) if halves else (height, width)
        queries = seen[y : y + tall, x : x + wide].flatten(0, 1)
        if not len(queries):
            continue
        expected = {"circle": set(), "border": set(), "full": set()}
        for row in range(-(-grid[0] // 8)):
            for col in range(-(-grid[1] // 8)):
                block = queries[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
                if block.any():
                    whole = block[0].numel() == 64
                    kind = "border" if not whole else "full" if block.all() else "circle"
                    expected[kind].add(row * 2**16 + col)
        circles, partial = int(lists.circle_count[tile]), int(lists.partial_count[tile])
        found = {
            "circle": lists.partial[tile, :circles],
            "border": lists.partial[tile, circles:partial],
            "full": lists.full[tile, : int(lists.full_count[tile])],
        }
        for kind, places in found.items():
            assert len(set(places.tolist())) == len(places)
            # A query tile that the border cuts is asked about as if it were whole.
            if len(queries) == tall * wide or kind == "border":
                assert set(places.tolist()) == expected[kind], (tile, kind)
        assert set().union(*(one.tolist() for one in found.values())) >= set().union(*expected.values())
