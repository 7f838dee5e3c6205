"""What CLEAR in FLUX.1's relatives in diffusers refuses, each in one sentence and with the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.41")

import diffusers

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import run
from tests.support.diffusers_relatives import RELATIVES


def flux2_with_a_cache() -> Any:
    """As the pipeline for klein with a cache makes it."""
    from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor

    model = RELATIVES["FLUX.2"].build()
    model.transformer_blocks[0].attn.set_processor(Flux2KVAttnProcessor())
    return model


def layered() -> Any:
    return RELATIVES["Qwen-Image"].build(use_layer3d_rope=True)


FAMILY_NAMES = {"Chroma": "Chroma", "FLUX.2": "FLUX.2", "Qwen-Image": "Qwen-Image", "SD3": "SD3.5"}


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        pytest.param(layered, {}, "makes a picture of several layers .*; use a Qwen-Image or", id="layered"),
        pytest.param(flux2_with_a_cache, {}, "double block 0 attends through Flux2KVAttnProcessor", id="cache"),
        pytest.param(
            RELATIVES["SD3"].build, {"ntk_factor": 10.0}, "ntk_factor is 10 .* SD3.5 has a table of", id="base"
        ),
        pytest.param(RELATIVES["SD3"].build, {"ntk": "fading"}, "ntk 'fading', but SD3.5 has a table", id="fading"),
        *(
            pytest.param(
                RELATIVES[name].build,
                {"parallel": way},
                f"parallel is '{way}', which CLEAR has for FLUX.1 alone, not for {family}; leave it out",
                id=f"{family} {way}",
            )
            for name, family in FAMILY_NAMES.items()
            for way in ("strips", "heads")
        ),
    ],
)
def test_refused_before_anything_is_replaced(build: Any, arguments: dict[str, Any], message: str) -> None:
    model = build()
    processors = dict(model.attn_processors)
    with pytest.raises(ValueError, match=message) as refused:
        apply_clear(model, ClearSpec(2), **arguments)
    assert str(refused.value).count(". ") == 0
    assert all(processor is processors[key] for key, processor in model.attn_processors.items())
    assert not model._forward_pre_hooks


def test_another_model_is_told_which_ones_there_are() -> None:
    small = {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "cross_attention_dim": 16}
    small |= {"sample_size": 8, "caption_channels": 8, "use_additional_conditions": False}
    model = diffusers.PixArtTransformer2DModel(**small)
    message = (
        "transformer is a PixArtTransformer2DModel; expected a diffusers FluxTransformer2DModel, "
        "ChromaTransformer2DModel, .* or SD3Transformer2DModel"
    )
    with pytest.raises(TypeError, match=message):
        apply_clear(model, ClearSpec(2))  # pyright: ignore[reportArgumentType] - refused for it


GRID = (4, 5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        pytest.param(
            "Qwen-Image",
            {"img_shapes": [[(2, 2, 5)]] * 2},
            r"img_shapes is .*, but CLEAR's windows lie in one picture of 1 frame",
            id="frames",
        ),
        pytest.param(
            "Qwen-Image",
            {"img_shapes": [[(1, 4, 5)], [(1, 5, 4)]]},
            "img_shapes names several sizes in one batch",
            id="sizes",
        ),
        pytest.param("Qwen-Image", {"img_shapes": None}, "called without img_shapes", id="no shapes"),
        pytest.param("FLUX.2", {"img_ids": None}, "called without img_ids", id="no ids"),
        pytest.param(
            "FLUX.2",
            {"kv_cache_mode": "extract", "num_ref_tokens": 2},
            "called with kv_cache_mode 'extract', .*; use the pipeline without a cache",
            id="cache",
        ),
        pytest.param("FLUX.2", {"img_ids": torch.zeros(20, 3)}, r"shape \(20, 3\); expected \(tokens, 4\)", id="axes"),
        pytest.param(
            "SD3",
            {"joint_attention_kwargs": {"attention_mask": torch.ones(1)}},
            "an attention_mask was given, which CLEAR does not take",
            id="mask",
        ),
    ],
)
def test_refused_in_a_call(name: str, change: dict[str, Any], message: str) -> None:
    model = RELATIVES[name].build()
    inputs = RELATIVES[name].call(GRID)
    stock = run(model, inputs)
    with apply_clear(model, ClearSpec(2)), pytest.raises(ValueError, match=message):
        run(model, inputs | change)
    assert torch.equal(run(model, inputs), stock)


def test_chroma_with_gradient_checkpointing_is_refused() -> None:
    model = RELATIVES["Chroma"].build()
    apply_clear(model, ClearSpec(2))
    model.train()
    model.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match=r"gradient checkpointing use diffusers .*any for Chroma"):
        model(**RELATIVES["Chroma"].call(GRID))


def test_sd3_refuses_by_itself_what_its_table_of_positions_has_no_place_for() -> None:
    model = RELATIVES["SD3"].build()
    for windows in (False, True):
        if windows:
            apply_clear(model, ClearSpec(2))
        run(model, RELATIVES["SD3"].call((12, 3)))
        with pytest.raises(ValueError, match=r"Height \(13\) cannot be greater than `pos_embed_max_size`: 12"):
            run(model, RELATIVES["SD3"].call((13, 3)))
