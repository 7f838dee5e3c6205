"""The kernel that torch's compiler writes for cards, without a card: exact in Triton's interpreter, and how long it is.

``CLEAR_FLEX_PYTHON`` names another interpreter whose torch and Triton write and compile it; by default these are the
ones of the tests.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.flex_code import HEADS, LAYOUT, environment, read_code
from clear_core.attention.backends.flex import backend as flex
from tests.support import interpreted_flex, interpreted_triton
from tests.support.interpreted_flex import Case, run_as_on_a_card

PYTHON = os.environ.get("CLEAR_FLEX_PYTHON") or sys.executable
PROJECT = Path(__file__).resolve().parents[2]
# By compute capability times ten: kernels that are written for such a card.
KERNELS = {
    86: ("bfloat16-128", "float16-128", "float16-64-lse", "float16-64-lse-overview"),
    90: ("bfloat16-128", "bfloat16-128-overview"),
}


@pytest.fixture(scope="module")
def codes():
    """Gives the code of all kernels of a card by name, written once."""
    pytest.importorskip("triton", reason="needs Triton")
    from benchmarks import pretended_card

    if reason := pretended_card.missing():
        pytest.skip(reason)
    return cache(lambda capability: read_code(PYTHON, capability, KERNELS[capability]))


@pytest.fixture(scope="module")
def interpreter(codes, tmp_path_factory):
    """Calls functions of ``interpreted_flex`` in a process where Triton interprets its kernels."""
    with pytest.MonkeyPatch.context() as patch:
        # Read when Triton is imported, so not in this process; a spawned one inherits it.
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(interpreted_triton.prepare, tmp_path_factory.mktemp("cache")).result()
    with pool:
        yield lambda case: pool.submit(interpreted_flex.errors, codes(86)[case.kernel], case).result()


CASES = [
    Case("float16-64-lse", (19, 23), text=9, reference=0, radius=4),
    Case("float16-128", (1, 3), text=0, reference=0, radius=2),
    # Whole blocks; query tiles that lie; several blocks of what everyone sees.
    Case("float16-128", (8, 48), text=64, reference=70, radius=16, heads=1),
    Case("float16-64-lse", (33, 17), text=77, reference=5, radius=8, down_factor=2, batch=2, heads=1),
    # Query tiles that begin inside a key tile.
    Case("float16-64-lse", (40, 17), text=70, reference=0, radius=5, heads=1, rows=range(3, 20)),
    Case("float16-128", (26, 9), text=7, reference=2, radius=5, heads=3),
    # Cells cut at both borders, near and far, more than a block of them.
    Case("float16-64-lse-overview", (41, 17), text=9, reference=2, radius=5, down_factor=2, heads=1),
]
SLOW_CASES = [
    Case("float16-128", (40, 31), text=13, reference=30, radius=16, heads=1),
    Case("float16-128", (68, 20), text=512, reference=0, radius=8, down_factor=4, heads=1),
    Case("float16-64-lse", (37, 45), text=1, reference=100, radius=13, down_factor=3, heads=1),
    Case("float16-64-lse-overview", (40, 17), text=0, reference=0, radius=3, down_factor=4, rows=range(3, 20)),
    Case("float16-64-lse-overview", (19, 23), text=64, reference=0, radius=70, down_factor=3),
    Case("float16-64-lse-overview", (14, 33), text=1, reference=30, radius=2, heads=1),
    Case("float16-64-lse", (64, 64), text=77, reference=0, radius=32, heads=1),
    Case("float16-64-lse", (90, 7), text=0, reference=1, radius=20, batch=2, heads=2),
    Case("float16-64-lse", (50, 50), text=5, reference=0, radius=70, heads=1, rows=range(17, 34)),
]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)], ids=str
)
def test_the_emitted_kernel_is_dense(case, interpreter):
    found = interpreter(case)
    assert found[0] <= 2e-3
    # Pooled keys are rounded to the dtype before they are scored.
    assert len(found) == 1 + ("lse" in case.kernel) and found[-1] <= (1e-3 if len(found) == 2 else 2e-3)


def test_the_code_does_as_the_cases_say(codes):
    """Every kernel looks its mask up in a table and checks no bounds; symbols stand for all sizes."""
    for code in codes(86).values():
        assert "'IS_DIVISIBLE': True" in code.module
        assert any("mask_mod" in one and one.endswith(".size()[0]") for one in code.arguments), "the table"
        (call,) = (part for part in code.module.split("def call(")[1:])
        body = call[: call.index("return (")]
        for size in (HEADS, LAYOUT.text, *LAYOUT.grid, LAYOUT.image):
            assert f" {size}," not in body.split("args.clear()")[1]


# Instructions of one masked and one whole step of 128 x 64, by compute capability times ten, at most. The mask by
# division takes 2,384 on 8.6.
MOST = {86: (1400, 650), 90: (1400, 520)}


@pytest.mark.slow
def test_an_overview_fits_a_card(codes):
    """Its table is looked up in every step, so it is longer."""
    with tempfile.TemporaryDirectory() as folder:
        found = counted(codes(90)["bfloat16-128-overview"], 90, Path(folder))
    assert found["masked"] <= 1600 and found["whole"] <= 1000
    assert found["spills_in_loops"] == 0 and found["fits"]


@pytest.mark.parametrize("capability", [86, pytest.param(90, marks=pytest.mark.slow)])
def test_a_step_takes_few_instructions(capability, codes, record_property):
    (name,) = KERNELS[capability][:1]
    with tempfile.TemporaryDirectory() as folder:
        found = counted(codes(capability)[name], capability, Path(folder))
    record_property("instructions", str(found))
    masked, whole = MOST[capability]
    assert found["masked"] <= masked and found["whole"] <= whole
    assert found["spills_in_loops"] == 0 and found["fits"]


def counted(code, capability, folder):
    """``flex_compile.loops`` by the interpreter that wrote the code."""
    (folder / "code.json").write_text(json.dumps({"module": code.module, "arguments": code.arguments}))
    command = (
        "import json, sys; from benchmarks.flex_code import Code; from benchmarks.flex_compile import loops; "
        "print(json.dumps(loops(Code(**json.load(open(sys.argv[1]))), int(sys.argv[2]))))"
    )
    done = subprocess.run(
        [PYTHON, "-c", command, str(folder / "code.json"), str(capability)],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_one_compilation_serves_every_call_of_a_card():
    """With the mask by table too, whose length is a size of its own. The first is the self-test's."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        q = next(i for i, one in enumerate(inputs) if isinstance(one, torch.Tensor))
        return lambda *arguments: (torch.zeros_like(arguments[q]),)

    torch._dynamo.reset()
    fused = torch.compile(flex._fused, dynamic=True, fullgraph=True, backend=backend)
    sizes = [(7, (20, 13), 2), (0, (1, 3), 0), (512, (64, 64), 0), (64, (8, 48), 70), (0, (24, 8), 0), (1, (90, 16), 1)]
    for i, (text, grid, reference) in enumerate(sizes):
        for radius in (5, 2, 16):
            rows = range(grid[0] // 4, 1 + grid[0] // 2) if i % 2 else None
            case = Case("float16-16", grid, text, reference, radius, 1 + i % 3, 1 + i % 2, (2, 3, 24)[i % 3], rows)
            run_as_on_a_card(fused, replace(case.call(), scale=0.1 + 0.01 * i))
    torch._dynamo.reset()
    assert len(graphs) == 1
