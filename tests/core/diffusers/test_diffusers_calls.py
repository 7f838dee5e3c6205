"""Each call of a diffusers FLUX with CLEAR gets what its own size, batch and ids ask for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.families import FLUX1
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.frame import grid_ids
from tests.support.diffusers_flux import call_inputs, relative, run


def test_sizes_a_b_a(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3, 2))
    a, b = call_inputs((9, 11)), call_inputs((12, 7), text=8)
    first = run(flux, a)
    run(flux, b)
    assert torch.equal(run(flux, a), first)


def test_transposed_grid_of_the_same_length_gets_its_own_window(flux: Any) -> None:
    inputs = call_inputs((6, 10))
    with apply_clear(flux, ClearSpec(3)):
        wide = run(flux, inputs)
        tall = run(flux, inputs | {"img_ids": grid_ids((10, 6))})
        assert torch.equal(run(flux, inputs), wide)
    assert relative(tall, wide) > 1e-3


def test_threads_each_get_their_own_size(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3))
    calls = [call_inputs((6 + i % 3, 9 - i % 2), seed=i) for i in range(8)]
    one_by_one = [run(flux, inputs) for inputs in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: run(flux, inputs), calls))
    assert all(relative(a, b) < 1e-6 for a, b in zip(together, one_by_one, strict=True))


def test_batch_equals_one_by_one(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3, 4))
    inputs = call_inputs((7, 9), batch=2)
    batched = run(flux, inputs)
    for i in range(2):
        single = {name: value[i : i + 1] if "ids" not in name else value for name, value in inputs.items()}
        assert relative(run(flux, single), batched[i : i + 1]) < 1e-6


def test_auto_recipe_starts_above_8192_tokens(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(FLUX1), "hires_tokens", 50)
    small, large = call_inputs((5, 10)), call_inputs((3, 17))
    with apply_clear(flux, ClearSpec(3), ntk_factor=1.0, proportional_attention="off"):
        plain = run(flux, small)
    with apply_clear(flux, ClearSpec(3), ntk_factor=10.0, proportional_attention="on"):
        hires = run(flux, large)
    apply_clear(flux, ClearSpec(3))
    assert torch.equal(run(flux, small), plain)
    assert torch.equal(run(flux, large), hires)


def test_positional_call_equals_keywords(flux: Any) -> None:
    apply_clear(flux, ClearSpec(2), ntk_factor=10.0)
    inputs = call_inputs((6, 7))
    order = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    )
    with torch.no_grad():
        positional = flux(*(inputs[name] for name in order), return_dict=False)[0]
    assert torch.equal(positional, run(flux, inputs))


def test_half_precision_ids_are_repaired(flux: Any) -> None:
    # The pipelines cast ids to bfloat16, which cannot tell 256 from 257.
    apply_clear(flux, ClearSpec(2))
    inputs = call_inputs((1, 300))
    assert torch.equal(run(flux, inputs | {"img_ids": inputs["img_ids"].bfloat16()}), run(flux, inputs))
