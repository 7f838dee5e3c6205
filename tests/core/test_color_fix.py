"""The wavelet colour fix takes coarse colours from the reference and detail from the picture."""

from __future__ import annotations

import pytest
import torch

from clear_core.sdedit import wavelet_color_fix
from clear_core.sdedit.color import low_frequencies


def test_a_colour_cast_is_taken_off_and_detail_stays():
    generator = torch.Generator().manual_seed(0)
    detail = 0.1 * torch.rand(2, 160, 200, 3, generator=generator)
    picture = 0.4 + detail
    cast = picture + torch.tensor([0.1, -0.05, 0.02])
    fixed = wavelet_color_fix(cast, picture)
    assert torch.allclose(fixed, picture, atol=1e-5)


def test_what_is_coarse_comes_from_the_reference_and_what_is_fine_from_the_picture():
    ramp = torch.linspace(0.2, 0.8, 256)[None, None, :, None].expand(1, 64, 256, 3)
    stripes = 0.5 + 0.1 * (torch.arange(256) % 2)[None, None, :, None].expand(1, 64, 256, 3)
    fixed = wavelet_color_fix(stripes, ramp)
    inside = slice(40, 216)
    assert torch.allclose(fixed.diff(dim=2)[:, :, inside].abs().mean(), torch.tensor(0.1), atol=0.005)
    pairs = fixed[:, :, 0::2] + fixed[:, :, 1::2]
    assert torch.allclose(pairs[:, :, 20:108] / 2, (ramp[:, :, 0::2] + ramp[:, :, 1::2])[:, :, 20:108] / 2, atol=0.01)


def test_low_frequencies_keep_constants_and_mean():
    flat = torch.full((1, 3, 50, 40), 0.3)
    assert torch.allclose(low_frequencies(flat), flat)
    wave = torch.randn(1, 3, 128, 128)
    assert low_frequencies(wave).std() < 0.1


def test_refuses_another_size():
    with pytest.raises(ValueError, match="reference has shape"):
        wavelet_color_fix(torch.rand(1, 4, 4, 3), torch.rand(1, 4, 5, 3))
