"""CLEAR in diffusers' Chroma, FLUX.2, Qwen-Image and SD3 against the stock model with the window as a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.41")

from clear_core import ClearSpec
from clear_core.integrations import diffusers_parallel
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import relative, run
from tests.support.diffusers_relatives import RELATIVES, Grid, in_windows

GRIDS = [(7, 5), (5, 9)]
PAST_THE_DIAGONAL = 1000
REFERENCES = {False: (), True: ((3, 4), (2, 5))}


def stock_in_windows(name: str, model: Any, inputs: dict[str, Any], grid: Grid, radius: int) -> torch.Tensor:
    with in_windows(RELATIVES[name], inputs, grid, radius) as lengths:
        out = run(model, inputs)
    assert len(lengths) == RELATIVES[name].attentions
    return out


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", RELATIVES)
def test_windows_are_a_mask_on_the_stock_model(name: str, grid: Grid) -> None:
    kind = RELATIVES[name]
    model = kind.build()
    for references in {(), REFERENCES[kind.references]}:
        inputs = kind.call(grid, references=references)
        stock = run(model, inputs)
        for radius in (1, 3, 5):
            masked = stock_in_windows(name, model, inputs, grid, radius)
            with apply_clear(model, ClearSpec(radius)):
                assert relative(run(model, inputs), masked) < 1e-5
            assert relative(masked, stock) > 1e-3
        with apply_clear(model, ClearSpec(PAST_THE_DIAGONAL)):
            assert relative(run(model, inputs), stock) < 1e-5


@pytest.mark.parametrize("name", RELATIVES)
def test_one_row_one_column_and_sizes_a_b_a(name: str) -> None:
    model = RELATIVES[name].build()
    calls = [RELATIVES[name].call(grid, text) for grid, text in (((1, 9), 3), ((7, 1), 1), ((1, 9), 3))]
    masked = [
        stock_in_windows(name, model, inputs, grid, 2)
        for inputs, grid in zip(calls, ((1, 9), (7, 1), (1, 9)), strict=True)
    ]
    with apply_clear(model, ClearSpec(2)):
        for inputs, expected in zip(calls, masked, strict=True):
            assert relative(run(model, inputs), expected) < 1e-5


@pytest.mark.parametrize("name", RELATIVES)
def test_removal_leaves_no_trace(name: str) -> None:
    kind = RELATIVES[name]
    model = kind.build()
    inputs = kind.call((5, 7), references=REFERENCES[kind.references])
    before, processors, keys = run(model, inputs), dict(model.attn_processors), list(model.state_dict())
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    with apply_clear(model, ClearSpec(2, 2)) as handle:
        assert relative(run(model, inputs), before) > 1e-3
        # One weight for each attention, under the published ending.
        extra = set(model.state_dict()) - set(keys)
        assert len(extra) == kind.attentions and all(key.endswith(".processor.spatial_weight") for key in extra)
    handle.remove()
    assert torch.equal(run(model, inputs), before)
    assert list(model.state_dict()) == keys
    assert all(processor is processors[key] for key, processor in model.attn_processors.items())
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "Chroma"])
def test_gradients_reach_every_spatial_weight_and_survive_checkpointing(name: str) -> None:
    model = RELATIVES[name].build()
    apply_clear(model, ClearSpec(2, 2))
    inputs = RELATIVES[name].call((5, 6))
    gradients = []
    for checkpointing in (False, True):
        model.train()
        (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
        model.zero_grad()
        model(**inputs, return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if n.endswith("spatial_weight")])
    assert len(gradients[0]) == RELATIVES[name].attentions
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.norm() > 0
        assert relative(recomputed, plain) < 1e-5


@pytest.mark.parametrize("name", ["Chroma", "FLUX.2", "SD3.5 Large", "SD3.5 Medium"])
def test_fused_projections(name: str) -> None:
    model = RELATIVES[name].build()
    inputs = RELATIVES[name].call((6, 7))
    with apply_clear(model, ClearSpec(3)):
        expected = run(model, inputs)
    model.fuse_qkv_projections()
    with apply_clear(model, ClearSpec(3)):
        assert relative(run(model, inputs), expected) < 1e-5


@pytest.mark.parametrize("name", RELATIVES)
def test_half_precision_rounds_no_more_than_the_stock_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, model = (5, 7), RELATIVES[name].build()
    inputs = RELATIVES[name].call(grid)
    exact = stock_in_windows(name, model, inputs, grid, 2)
    half = {
        key: value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    stock = stock_in_windows(name, model.bfloat16(), half, grid, 2).float()
    dtypes, attend = set(), diffusers_parallel.clear_attention

    def seen(q: torch.Tensor, *others: Any, **named: Any) -> Any:
        dtypes.add(q.dtype)
        return attend(q, *others, **named)

    monkeypatch.setattr(diffusers_parallel, "clear_attention", seen)
    apply_clear(model, ClearSpec(2))
    out = run(model, half)
    assert dtypes == {out.dtype} == {torch.bfloat16}
    assert relative(out.float(), exact) < 1.5 * relative(stock, exact)
