"""Processors that other code sets after CLEAR would make blocks dense without a word; the next call says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, run


def with_ip_adapter(flux: Any) -> None:
    """As ``load_ip_adapter`` sets processors: an adapter's in double blocks, the stock one in single blocks."""
    from diffusers.models import attention_processor, transformers

    home = getattr(transformers.transformer_flux, "FluxIPAdapterAttnProcessor", None)
    adapter = home or attention_processor.FluxIPAdapterJointAttnProcessor2_0
    stock = (
        getattr(transformers.transformer_flux, "FluxAttnProcessor", None) or attention_processor.FluxAttnProcessor2_0
    )
    flux.set_attn_processor(
        {
            name: stock() if name.startswith("single_") else adapter(hidden_size=64, cross_attention_dim=64)
            for name in flux.attn_processors
        }
    )


def stock_everywhere(flux: Any) -> None:
    flux.set_attn_processor(type(flux.clear_test_stock)())


def one_block(flux: Any) -> None:
    flux.single_transformer_blocks[1].attn.set_processor(type(flux.clear_test_stock)())


def fused(flux: Any) -> None:
    flux.fuse_qkv_projections()
    flux.set_attn_processor(type(flux.clear_test_stock)())


@pytest.mark.parametrize(
    "replace, block, name",
    [
        (with_ip_adapter, "double block 0", "FluxIPAdapter"),
        (stock_everywhere, "double block 0", "FluxAttnProcessor"),
        (one_block, "single block 1", "FluxAttnProcessor"),
        (fused, "double block 0", "FluxAttnProcessor"),
    ],
    ids=["ip_adapter", "all", "one", "fused"],
)
def test_the_next_call_names_the_block_and_the_processor(flux, replace, block, name):
    inputs = call_inputs((6, 7))
    object.__setattr__(flux, "clear_test_stock", flux.transformer_blocks[0].attn.processor)
    handle = apply_clear(flux, ClearSpec(3))
    windowed = run(flux, inputs)
    replace(flux)
    with pytest.raises(ValueError, match=rf"^{block} no longer attends through CLEAR but through {name}") as caught:
        run(flux, inputs)
    assert "\n" not in str(caught.value) and "remove() CLEAR and apply it again" in str(caught.value)
    # What the sentence tells to do.
    handle.remove()
    flux.set_attn_processor(type(flux.clear_test_stock)())
    with apply_clear(flux, ClearSpec(3)):
        torch.testing.assert_close(run(flux, inputs), windowed)


def test_a_copy_of_a_model_with_clear_is_one_with_clear(flux):
    import copy

    inputs = call_inputs((6, 7))
    apply_clear(flux, ClearSpec(3))
    assert torch.equal(run(copy.deepcopy(flux), inputs), run(flux, inputs))
