"""CLEAR in a diffusers FLUX leaves no trace: after its removal, in other models, in a caller's arguments."""

from __future__ import annotations

import copy
from typing import Any

import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, relative, run


def test_removal_restores_stock(flux: Any) -> None:
    inputs = call_inputs((10, 12))
    before, processors, keys = run(flux, inputs), dict(flux.attn_processors), list(flux.state_dict())
    embedder = flux.pos_embed
    with apply_clear(flux, ClearSpec(3, 4), ntk_factor=10.0, proportional_attention="on") as handle:
        assert relative(run(flux, inputs), before) > 1e-3
        assert len(flux.state_dict()) == len(keys) + 3
    assert torch.equal(run(flux, inputs), before)
    assert list(flux.state_dict()) == keys
    assert flux.pos_embed is embedder
    assert all(processor is processors[name] for name, processor in flux.attn_processors.items())
    assert not flux._forward_pre_hooks
    handle.remove()
    assert torch.equal(run(flux, inputs), before)


def test_removal_leaves_a_later_processor_alone(flux: Any) -> None:
    handle = apply_clear(flux, ClearSpec(3))
    newer = type(copy.deepcopy(handle._swaps[0][2]))()
    flux.transformer_blocks[0].attn.set_processor(newer)
    handle.remove()
    assert flux.transformer_blocks[0].attn.processor is newer


def test_two_models_do_not_meet(flux: Any) -> None:
    other = copy.deepcopy(flux)
    inputs = call_inputs((8, 9))
    stock = run(other, inputs)
    apply_clear(flux, ClearSpec(2))
    alone = run(flux, inputs)
    assert torch.equal(run(other, inputs), stock)
    with apply_clear(other, ClearSpec(4, 4), ntk_factor=4.0):
        run(other, inputs)
        assert torch.equal(run(flux, inputs), alone)
    assert torch.equal(run(other, inputs), stock)


def test_callers_keywords_are_left_alone(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3))
    mine: dict[str, Any] = {}
    run(flux, call_inputs((5, 5)) | {"joint_attention_kwargs": mine})
    assert mine == {}
