"""Attention scale and NTK factor, against the formulas written out and against diffusers' own rotary embedding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clear_core import attention_scale
from clear_core.families import FLUX1
from clear_core.rope import ntk_factor, ntk_theta


@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_plain_scale_is_torchs_default(head_dim: int) -> None:
    q, k, v = torch.randn(3, 1, 2, 7, head_dim)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert torch.allclose(attend(q, k, v, scale=attention_scale(head_dim)), attend(q, k, v))


@pytest.mark.parametrize(("pooled", "factor"), [(False, 1), (True, 10)], ids=["window", "pooled"])
@pytest.mark.parametrize("tokens", [500, 4608, 16896, 262656])
def test_proportional_scale(tokens: int, pooled: bool, factor: int) -> None:
    scale = attention_scale(128, proportional=True, tokens=tokens, pooled=pooled)
    # base ** (scale^2 * head_dim) gives the counted tokens back: 4608 is 1024 px with 512 text tokens.
    assert 4608 ** (scale**2 * 128) == pytest.approx(factor * tokens)


def test_both_scales_agree_where_flux_was_trained() -> None:
    assert attention_scale(128, proportional=True, tokens=64 * 64 + 512) == pytest.approx(attention_scale(128))


@pytest.mark.parametrize("tokens", [0, 1])
def test_proportional_scale_of_almost_nothing_is_finite(tokens: int) -> None:
    assert attention_scale(32, proportional=True, tokens=tokens) == 0


@pytest.mark.parametrize(("tokens", "factor"), [(8192, 1.0), (8193, 10.0)])
def test_the_ntk_factor_goes_by_the_size_unless_it_is_set(tokens: int, factor: float) -> None:
    assert ntk_factor(tokens) == factor
    assert ntk_factor(tokens, 3.0) == 3.0
    assert ntk_factor(tokens, family=replace(FLUX1, hires_tokens=9000)) == 1.0


@pytest.mark.parametrize("factor", [1.0, 4.0, 10.0])
def test_ntk_theta_is_diffusers_ntk_factor(factor: float) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    positions = torch.arange(300).float()
    options = {"use_real": True, "repeat_interleave_real": True, "freqs_dtype": torch.float64}
    ours = embeddings.get_1d_rotary_pos_embed(56, positions, theta=ntk_theta(10000, factor), **options)
    theirs = embeddings.get_1d_rotary_pos_embed(56, positions, theta=10000, ntk_factor=factor, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
