"""torch.compile through the host's own path: every change takes effect, and no step after the first compiles anything.

The host's compile node drops guards on ``transformer_options``, where the window comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.host.support_comfy.oracle import window_mask, with_oracle_attention
from tests.host.support_comfy.sampling import conditioning, relative_error, run_node

TEXT = 7
STEPS = (0.9, 0.6, 0.3)
WIDGETS = {"ntk_factor": 10.0}


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(1))


def prompt() -> list:
    generator = torch.Generator().manual_seed(2)
    return conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))


def compiled_frames() -> int:
    """Pieces of code that were compiled since the test began."""
    return torch._dynamo.utils.counters["frames"]["ok"]


@pytest.fixture
def compiler() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compile_node(host, compiler, request) -> Callable[[Any], Any]:
    """What TorchCompileModel does; its list of backends lacks "eager", which traces the same and compiles at once."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import TorchCompileModel, skip_torch_compile_dict

    def apply(model: Any) -> Any:
        if request.param == "inductor":
            return run_node(TorchCompileModel, model=model, backend="inductor")[0]
        clone = model.clone()
        set_torch_compile_wrapper(model=clone, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
        return clone

    return apply


@pytest.mark.parametrize("order", ["node first", "compile first"])
def test_radius_and_size_take_effect_and_steps_do_not_compile(tiny_flux, clear_node, predict, compile_node, order):
    model = tiny_flux(depth=1, depth_single_blocks=1)
    sizes = ((12, 14), (16, 14), (12, 14))
    expected = {
        (radius, size, sigma): predict(clear_node(model, radius=radius, **WIDGETS), noise(*size), sigma, prompt())
        for radius in (2, 4)
        for size in set(sizes)
        for sigma in STEPS
    }
    known: set[tuple[int, int]] = set()
    for radius in (2, 4, 2):
        patched = (
            compile_node(clear_node(model, radius=radius, **WIDGETS))
            if order == "node first"
            else clear_node(compile_node(model), radius=radius, **WIDGETS)
        )
        for size in sizes:
            for sigma in STEPS:
                before = compiled_frames()
                found = predict(patched, noise(*size), sigma, prompt())
                assert relative_error(found, expected[radius, size, sigma]) < 1e-5, (radius, size, sigma)
                if size in known:
                    assert compiled_frames() == before, f"radius {radius}, {size}, sigma {sigma} compiled again"
                known.add(size)
    assert compiled_frames() > 10, "nothing was compiled, so the counts say nothing"


def test_the_window_may_begin_and_end_on_the_way(tiny_flux, clear_node, predict, compile_node):
    model, x = tiny_flux(depth=1, depth_single_blocks=1), noise(12, 14)
    patched = compile_node(clear_node(model, radius=2, start_percent=0.3, end_percent=0.8))
    windowed = with_oracle_attention(model, window_mask(TEXT, (6, 7), 0, 2))
    began = 0
    for sigma, expected in ((0.99, model), (0.6, windowed), (0.05, model), (0.6, windowed), (0.99, model)):
        assert relative_error(predict(patched, x, sigma, prompt()), predict(expected, x, sigma, prompt())) < 1e-5
        began = began or compiled_frames()
    assert 0 < compiled_frames() == began
