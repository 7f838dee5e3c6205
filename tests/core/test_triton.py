"""The Triton kernel in Triton's interpreter against the oracle; its key lists, block shapes and refusals."""

import dataclasses
import json
import logging
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import choose as backends
from clear_core.attention import explain_backend
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.backends.triton import backend as triton_backend
from clear_core.attention.backends.triton import block_shapes as triton_tiles
from clear_core.attention.backends.triton import launch as triton_launch
from clear_core.attention.backends.triton.launch import TileShape
from clear_core.attention.tiling.plan import query_tile_size, tile_plan
from tests.support import interpreted_triton
from tests.support.interpreted_triton import Case

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
# The first: rows of which the first blocks show no key, nothing seen by all, ragged on both sides.
CASES = [
    dataclasses.replace(Case.draw(0), grid=(25, 19), text=0, reference=0, radius=4, down_factor=1),
    *(Case.draw(seed) for seed in range(1, 150)),
]


@pytest.fixture(scope="module")
def interpreter():
    """Calls functions of ``interpreted_triton`` in a process where Triton interprets its kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # Read when Triton is imported, so not in this process; a spawned one inherits it.
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(interpreted_triton.prepare).result()
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


def test_the_cases_reach_every_branch():
    plans = [
        tile_plan(SequenceLayout(case.text, case.grid, case.reference), ClearSpec(case.radius, case.down_factor), CPU)
        for case in CASES
    ]
    lists = [triton_launch.tile_lists(plan) for plan in plans]
    assert {case.blocks for case in CASES} == set(interpreted_triton.BLOCKS)
    assert {case.scale for case in CASES} >= {None, 0.0, -0.2}
    assert {case.integers for case in CASES} == {True, False}
    assert {case.down_factor > 1 for case in CASES} == {plan.upright for plan in plans} == {True, False}
    assert any(plan.full_count.any() for plan in plans)
    assert any(one.circle_count.any() for one in lists)
    assert any((one.circle_count < one.partial_count).any() for one in lists)
    # Whole blocks of what everyone sees, the rest of one, and none.
    assert {plan.prefix // 64 > 0 for plan in plans} == {plan.prefix % 64 > 0 for plan in plans} == {True, False}


@pytest.mark.parametrize("token_stride, head_stride", [(2**26 + 16, 2**25), (16, 2**31 + 48)], ids=["tokens", "heads"])
def test_places_past_31_bits(token_stride, head_stride, interpreter, tmp_path):
    error, last = interpreter(interpreted_triton.far_apart, tmp_path, token_stride, head_stride)
    assert last > 2**31
    assert error <= TOLERANCE[torch.float16]


def test_the_self_test_passes_and_finds_a_wrong_window(interpreter):
    assert interpreter(interpreted_triton.refusal, torch.float32) is None
    assert "off by" in interpreter(interpreted_triton.refusal_of_another_window)


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
def test_lists_hold_the_tiles_that_are_seen(grid, radius):
    layout, spec = SequenceLayout(0, grid), ClearSpec(radius)
    plan = tile_plan(layout, spec, CPU)
    lists = triton_launch.tile_lists(plan)
    seen = image_rows_mask(range(grid[0]), layout, spec, CPU).unflatten(1, grid).unflatten(0, grid)
    height, width = query_tile_size(plan.upright)
    for tile in range(plan.query_tiles):
        y, x = tile // plan.tiles[1] * height, tile % plan.tiles[1] * width
        queries = seen[y : y + height, x : x + width].flatten(0, 1)
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
            if len(queries) == height * width or kind == "border":
                assert set(places.tolist()) == expected[kind], (tile, kind)
        assert set().union(*(one.tolist() for one in found.values())) >= set().union(*expected.values())


# ---- when it runs ----


def test_clear_core_does_not_need_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, clear_core\n"
        "from clear_core.attention import backends\n"
        "q = torch.zeros(1, 1, 6, 16)\n"
        "clear_core.clear_attention(q, q, q, grid=(2, 3), spec=clear_core.ClearSpec(1))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "device, dtype, options, part",
    [
        (CPU, torch.float32, {}, "no compiler for cpu"),
        (torch.device("mps"), torch.float16, {}, "no compiler for mps"),
        (CUDA, torch.float64, {}, "does not take torch.float64"),
        (CUDA, torch.float16, {"needs_grad": True}, "no gradient"),
        (CUDA, torch.float16, {}, "8.0 and above, and cuda:0 has 7.5"),
    ],
)
def test_why_triton_is_not_available(device, dtype, options, part, monkeypatch):
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert part in backends.unavailable_reason("triton", device, dtype, 64, **options)


def test_a_named_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match="backend is 'triton', but Triton is not installed; use 'auto' or 'gather'"):
        run()


@pytest.mark.parametrize("flex", [None, "it is broken"])
def test_auto_never_takes_triton(flex, monkeypatch):
    monkeypatch.setattr(backends, "_flex_self_test", lambda *case: flex)
    monkeypatch.setattr(backends, "_triton_self_test", lambda *case: None)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda module: object())
    assert explain_backend(CUDA, torch.bfloat16, 128, (64, 64), ClearSpec(8))[0] != "triton"


# ---- when it fails ----


class OutOfResources(Exception):
    """As Triton's."""


@pytest.fixture
def pretended(monkeypatch):
    """A machine on which the kernel is said to work, and a list of what to do in its place."""
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(backends, "_dropped", set())
    monkeypatch.setattr(backends, "triton_unavailable_reason", lambda *case: None)
    monkeypatch.setattr(backends, "_triton_self_test", lambda *case: None)
    tried = []

    def pretend(launch):
        def spy(shape, *arguments):
            tried.append(shape)
            launch(shape)

        monkeypatch.setattr(triton_backend, "launch", spy)
        return tried

    return pretend


def run(backend="triton", down_factor=1, **options):
    q, k, v = torch.randn(3, 1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0)).unbind()
    return clear_attention(q, k, v, grid=(9, 11), spec=ClearSpec(4, down_factor), backend=backend, **options)


def test_blocks_that_do_not_fit_make_room_for_smaller_ones(pretended):
    shapes = triton_tiles.tile_shapes(CPU, torch.float32, 16)

    def launch(shape):
        if shape != shapes[-1]:
            raise OutOfResources("shared memory")

    tried = pretended(launch)
    run()
    assert tuple(tried) == shapes and len(shapes) > 1
    assert not backends._dropped


@pytest.mark.parametrize(
    "error", [OutOfResources("out of resource: shared memory"), TypeError("no such\nthing")], ids=repr
)
def test_a_kernel_that_fails_is_dropped_and_said_once(error, pretended, caplog):
    def launch(shape):
        raise error

    tried = pretended(launch)
    with caplog.at_level(logging.WARNING):
        outputs = [run() for _ in range(2)]
    assert len(tried) == (1 if isinstance(error, TypeError) else len(triton_tiles.tile_shapes(CPU, torch.float32, 16)))
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert str(error).splitlines()[0] in caplog.text
    assert all(torch.equal(out, run("gather")) for out in outputs)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_what_the_host_handles_is_passed_on(error, pretended):
    def launch(shape):
        raise error

    pretended(launch)
    with pytest.raises(type(error)):
        run()
    assert not backends._dropped


@pytest.mark.parametrize("chunk_bytes, down_factor, launches", [(None, 2, 1), (1, 1, 1), (1, 2, 2), (10**6, 2, 1)])
def test_chunks_are_heads_where_keys_are_pooled(chunk_bytes, down_factor, launches, pretended):
    tried, chunks = pretended(lambda shape: None), []
    run(chunk_bytes=chunk_bytes, down_factor=down_factor, on_chunk=lambda: chunks.append(len(tried)))
    assert len(tried) == launches
    assert chunks[:launches] == list(range(1, launches + 1))


def test_an_interrupt_ends_it(pretended):
    class Interrupted(Exception):
        pass

    def interrupt():
        raise Interrupted

    tried = pretended(lambda shape: None)
    with pytest.raises(Interrupted):
        run(chunk_bytes=1, down_factor=2, on_chunk=interrupt)
    assert len(tried) == 1 and not backends._dropped


# ---- block shapes ----

FAST, SLOW, BROKEN = TileShape(128, 64, 8, 3), TileShape(64, 64, 4, 2), TileShape(128, 32, 8, 3)


def seconds(shape):
    if shape == BROKEN:
        raise OutOfResources("registers")
    return {FAST: 1.0, SLOW: 2.0}[shape]


def test_the_measured_order_is_kept_on_disk_by_key(tmp_path):
    file, shapes = tmp_path / "new" / "tiles.json", (SLOW, BROKEN, FAST)
    assert triton_tiles.stored_order(file, "card", shapes) is None
    assert triton_tiles.measured_order(file, "card", shapes, seconds) == (FAST, SLOW)
    assert triton_tiles.measured_order(file, "other card", (SLOW,), seconds) == (SLOW,)
    assert triton_tiles.stored_order(file, "card", shapes) == (FAST, SLOW)
    assert triton_tiles.stored_order(file, "other card", shapes) == (SLOW,)
    assert triton_tiles.stored_order(file, "card", (FAST,)) is None, "shapes of an older version of the code"
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
    assert triton_tiles.stored_order(file, "card", (SLOW, FAST)) is None
    assert triton_tiles.measured_order(file, "card", (SLOW, FAST), seconds) == (FAST, SLOW)
    assert json.loads(file.read_text())["card"][0] == str(FAST)


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert triton_tiles.measured_order(tmp_path / "file" / "tiles.json", "card", (SLOW, FAST), seconds) == (FAST, SLOW)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), OutOfResources("none fits")], ids=repr)
def test_nothing_is_kept_where_nothing_was_measured(error, tmp_path):
    def raises(shape):
        raise error

    assert triton_tiles.measured_order(tmp_path / "tiles.json", "card", (SLOW, FAST), raises) == (SLOW, FAST)
    assert not list(tmp_path.iterdir())


def test_trying_shapes_out_leaves_the_users_random_numbers_alone(monkeypatch):
    ran = []
    monkeypatch.setattr(triton_tiles, "launch", lambda shape, *arguments: ran.append(shape))
    monkeypatch.setattr(triton_tiles, "_TRIAL", (SequenceLayout(3, (9, 10)), ClearSpec(4), 2))
    before = torch.get_rng_state()
    assert triton_tiles._seconds(CPU, torch.float32, 16, FAST) > 0
    assert set(ran) == {FAST} and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "capability, stages", [((8, 0), 3), ((8, 6), 2), ((8, 9), 2), ((9, 0), 3), ((12, 0), 2)], ids=str
)
def test_cards_with_little_shared_memory_get_two_stages(capability, stages):
    shapes = triton_tiles.candidate_shapes("cuda", capability, torch.bfloat16, 128)
    assert shapes[0].stages == stages
    assert max(shape.stages for shape in shapes) == stages
