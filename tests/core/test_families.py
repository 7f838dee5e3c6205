"""The table of families, against the published configurations."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from clear_core.families import CHROMA, FAMILIES, FLUX1, FLUX2, HUNYUAN_IMAGE, IN_DIFFUSERS, SD3, Family, ModelShape
from clear_core.layout import TOKEN_PIXELS, token_grid
from clear_core.scale import attention_scale


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_entries_agree_with_themselves(family: Family) -> None:
    assert family.latent_pixels * family.token_cells == family.token_pixels
    assert family.token_pixels in (TOKEN_PIXELS, 32)
    assert family.scale_base == family.native_tokens + family.text_tokens
    assert family.width % family.head_dim == 0
    assert len(set(family.order)) == len(family.order)
    assert family.takes_references == ("reference" in family.order)
    assert not family.is_hires(family.hires_tokens) and family.is_hires(family.hires_tokens + 1)
    assert "image" in family.order
    assert ("text" in family.order) == (family.text_tokens > 0)
    if family in IN_DIFFUSERS:
        # Its processors bring the tokens into the engine's order.
        assert family.order[:2] == ("text", "image")


def test_native_size_is_a_megapixel() -> None:
    """Qwen-Image's is 1328 px square, HunyuanImage's 2048 px, Wan's frames have 1280 x 720 px."""
    sides = {"Qwen-Image": 1328, HUNYUAN_IMAGE.name: 2048}
    for family in FAMILIES:
        if family.name.startswith("Wan"):
            assert family.native_tokens == math.prod(token_grid(720, 1280, 16))
            continue
        side = sides.get(family.name, 1024)
        height, width = token_grid(side, side, family.token_pixels)
        assert height * width == family.native_tokens
    height, width = token_grid(1024, 1024, FLUX1.token_pixels)
    assert token_grid(1024 // FLUX1.latent_pixels, 1024 // FLUX1.latent_pixels) == (height, width)


def test_a_native_sequence_has_the_plain_scale_in_every_family() -> None:
    for family in (*FAMILIES, replace(FLUX1, scale_base=1000)):
        scale = attention_scale(family.head_dim, proportional=True, tokens=family.scale_base, base=family.scale_base)
        assert scale == pytest.approx(family.head_dim**-0.5)


def test_shifts_are_flux_s_alone_and_larger_from_noise_at_high_resolution() -> None:
    """3 is the authors' for FLUX.1, 6 I-Max's for its run at the target size; the others have their own."""
    assert (FLUX1.shift, FLUX1.hires_shift) == (3.0, 6.0)
    assert {(family.shift, family.hires_shift) for family in FAMILIES if family is not FLUX1} == {(None, None)}


def test_only_what_grew_from_flux_has_its_rotary_recipe() -> None:
    stretched = {family.name: family.hires_ntk for family in FAMILIES if family.hires_ntk != 1}
    assert stretched == {"FLUX.1": 10, "Chroma": 10}


def test_only_flux_has_weights() -> None:
    assert [family.name for family in FAMILIES if family.weights] == ["FLUX.1"]
    assert [ModelShape.usual(family).is_relative for family in (FLUX1, CHROMA)] == [False, True]


@pytest.mark.parametrize("family", IN_DIFFUSERS, ids=lambda family: family.name)
def test_diffusers_has_these_classes(family: Family) -> None:
    """Each class in diffusers has the blocks, width and parts that the table names; SD3's default is a small model."""
    import inspect

    diffusers = pytest.importorskip("diffusers", minversion="0.41")
    names = family.diffusers
    model = getattr(diffusers, names.transformer)
    default = {name: parameter.default for name, parameter in inspect.signature(model).parameters.items()}
    assert default["attention_head_dim"] == family.head_dim
    assert ("num_single_layers" in default) == (family.num_single > 0)
    if family is not SD3:
        assert (default["num_layers"], default.get("num_single_layers", 0)) == (family.num_double, family.num_single)
        assert default["num_attention_heads"] * default["attention_head_dim"] == family.width
    small = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    small |= {"axes_dims_rope": (4, 4, 4, 4) if family is FLUX2 else (4, 6, 6)}
    built = model(**{name: value for name, value in small.items() if name in default})
    assert (type(built.pos_embed).__name__ == names.embedder) == (names.embedder is not None)
    assert {type(processor).__name__ for processor in built.attn_processors.values()} <= set(names.processors)
    arguments = inspect.signature(model.forward).parameters
    assert names.attention_kwargs in arguments
    assert names.text_mask is None or names.text_mask in arguments
    assert {"ids": "img_ids", "shapes": "img_shapes", "latent": "hidden_states"}[names.grid] in arguments


def test_a_family_is_a_constant() -> None:
    with pytest.raises(AttributeError):
        FLUX1.token_pixels = 32  # type: ignore[misc]
    assert len({*FAMILIES}) == len(FAMILIES)
    assert all(field.name in FLUX1.__dict__ for field in fields(FLUX1))


def test_the_shift_of_a_run_is_6_if_guided_from_noise_at_high_resolution():
    for family in FAMILIES:
        assert family.shift_for(8193, False) == family.shift_for(4096, True) == family.shift
        assert family.shift_for(8193, True) == family.hires_shift
    assert (FLUX1.shift_for(8192, True), FLUX1.shift_for(8193, True), CHROMA.shift_for(8193, True)) == (3.0, 6.0, None)
