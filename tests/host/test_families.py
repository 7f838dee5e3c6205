"""Every family with windows against the dense oracle in the host's own order of tokens."""

from __future__ import annotations

import math

import pytest

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.families import FAMILIES, TinyFamily, denoised, oracle
from tests.host.support_comfy.sampling import relative_error

CLOSE = 1e-5


@pytest.fixture(params=list(FAMILIES))
def family(request, host) -> TinyFamily:
    found = FAMILIES[request.param]
    if not found.kind.is_known:
        pytest.skip(f"this ComfyUI does not know {request.param}")
    return found


def lines_of(log: Recorder) -> list[str]:
    return [line for line in log.messages() if "CLEAR" in line and "training-free" not in line]


def is_odd_for(family: TinyFamily) -> int:
    """Cells to cut off: Kandinsky and Radiance crash in the host on sizes that do not divide."""
    return 0 if family.cells == 1 or family.kind.supported in ("Kandinsky5Image", "ChromaRadiance") else 1


@pytest.mark.parametrize("grid, radius, dense", [((7, 9), 3, ()), ((11, 6), 5, (0,))], ids=["7x9", "11x6"])
def test_windows_are_the_oracles(family, clear_node, grid, radius, dense):
    """At odd sizes, with cfg above 1 and two pictures; the second size with a dense first block."""
    model, x = family.kind.build(), family.noise(grid, batch=2, odd=is_odd_for(family))
    positive, negative = family.prompt(), family.prompt(seed=5)
    with Recorder() as log:
        clear = clear_node(model, radius=radius, dense_blocks=",".join(map(str, dense)), min_tokens=0)
        found = denoised(clear, x, positive, negative)
    assert lines_of(log) == []
    stock = denoised(model, x, positive, negative)
    with oracle(family, model, x, radius, dense=dense) as expected:
        wanted = denoised(expected, x, positive, negative)
    assert relative_error(found, wanted) < CLOSE
    assert relative_error(stock, wanted) > 3 * CLOSE


def test_a_radius_past_the_grid_is_the_stock_model(family, clear_node):
    model, x = family.kind.build(), family.noise((5, 7))
    stock = denoised(model, x, family.prompt())
    assert relative_error(denoised(clear_node(model, radius=100), x, family.prompt()), stock) < CLOSE


@pytest.mark.parametrize(
    "family", [name for name, each in FAMILIES.items() if each.references is not None], indirect=True
)
def test_references_are_seen_by_all(family, host, clear_node):
    if family is FAMILIES["Z-Image"] and host.version.startswith("0.9."):
        pytest.skip("this ComfyUI gives Z-Image no references")
    model, x = family.kind.build(), family.noise((7, 9), batch=2)
    grids = ((4, 5), (3, 3))
    tokens = sum(math.prod(grid) for grid in grids)
    positive = family.prompt(references=grids)
    with Recorder() as log:
        found = denoised(clear_node(model, radius=3), x, positive)
    assert lines_of(log) == []
    with oracle(family, model, x, 3, tokens) as expected:
        wanted = denoised(expected, x, positive)
    assert relative_error(found, wanted) < CLOSE
    assert relative_error(denoised(clear_node(model, radius=3), x, family.prompt()), wanted) > 1e-4
