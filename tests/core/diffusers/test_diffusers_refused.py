"""What CLEAR in a diffusers FLUX refuses: models, values, weights and calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, run


def test_refuses_another_model() -> None:
    with pytest.raises(TypeError, match=r"Linear.*FluxTransformer2DModel"):
        apply_clear(torch.nn.Linear(2, 2), ClearSpec(8))


def test_refuses_a_second_time(flux: Any) -> None:
    apply_clear(flux, ClearSpec(8))
    with pytest.raises(ValueError, match="already on"):
        apply_clear(flux, ClearSpec(8))


def test_refuses_a_foreign_processor(flux: Any) -> None:
    class IPAdapter:
        pass

    flux.transformer_blocks[0].attn.processor = IPAdapter()
    with pytest.raises(ValueError, match="double block 0 attends through IPAdapter"):
        apply_clear(flux, ClearSpec(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"backend": "fast"}, "backend is 'fast'", id="backend"),
        pytest.param({"ntk_factor": -1.0}, "ntk_factor is -1", id="ntk"),
        pytest.param({"proportional_attention": "yes"}, "proportional_attention is 'yes'", id="proportional"),
        pytest.param({"spec": (8, 1)}, r"spec is \(8, 1\)", id="spec"),
    ],
)
def test_refuses_values(flux: Any, arguments: dict[str, Any], message: str) -> None:
    stock = dict(flux.attn_processors)
    with pytest.raises(ValueError, match=message):
        apply_clear(flux, **({"spec": ClearSpec(8)} | arguments))
    assert flux.attn_processors == stock


def spatial(d: int, *blocks: tuple[str, int]) -> dict[tuple[str, int], torch.Tensor]:
    return {block: torch.ones(d, d) for block in blocks}


ALL_BLOCKS = (("double", 0), ("single", 0), ("single", 1))


@pytest.mark.parametrize(
    ("weights", "down_factor", "message"),
    [
        pytest.param(spatial(4, *ALL_BLOCKS[:2]), 4, r"2 weights for 3 blocks, and \('single', 1\)", id="too-few"),
        pytest.param(spatial(4, *ALL_BLOCKS, ("double", 1)), 4, r"and \('double', 1\)", id="too-many"),
        pytest.param(spatial(2, *ALL_BLOCKS), 4, r"spatial_weight has shape \(2, 2\)", id="other-factor"),
        pytest.param(spatial(4, *ALL_BLOCKS), 1, "does not pool", id="no-pooling"),
    ],
)
def test_refuses_spatial_weights(
    flux: Any, weights: dict[tuple[str, int], torch.Tensor], down_factor: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_clear(flux, ClearSpec(8, down_factor), spatial_weights=weights)


def test_refuses_a_mask_and_unordered_tokens(flux: Any) -> None:
    apply_clear(flux, ClearSpec(8))
    inputs = call_inputs((4, 5))
    with pytest.raises(ValueError, match="attention_mask"):
        run(flux, inputs | {"joint_attention_kwargs": {"attention_mask": torch.ones(1)}})
    with pytest.raises(ValueError, match="row-major"):
        run(flux, inputs | {"img_ids": inputs["img_ids"].flip(0)})
