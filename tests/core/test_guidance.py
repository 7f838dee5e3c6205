"""Guidance by a low-resolution result, beside the published formulas in their own terms: velocities, in float64."""

import math

import numpy as np
import pytest
import torch

from clear_core.guidance import SCHEDULES, Alignment, align, butterworth, coarse, guided, progress

SHAPES = [(1, 4, 8, 8), (2, 16, 7, 11), (1, 16, 1, 6, 9), (3, 5)]


def drawn(shape, count, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()


def haar(latent, level):
    """Means of blocks, in plain loops."""
    out, side = latent.clone(), 2**level
    for y in range(0, latent.shape[-2], side):
        for x in range(0, latent.shape[-1], side):
            block = latent[..., y : y + side, x : x + side]
            out[..., y : y + side, x : x + side] = block.mean(dim=(-2, -1), keepdim=True)
    return out


def filtered(latent):
    """HiFlow's filter as published: transformed, shifted, multiplied, shifted back; by numpy."""
    height, width = latent.shape[-2:]
    mask = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            distance = (2 * y / height - 1) ** 2 + (2 * x / width - 1) ** 2
            mask[y, x] = 1 / (1 + (distance / 0.2**2) ** 4)
    spectrum = np.fft.fftshift(np.fft.fft2(latent.numpy()), axes=(-2, -1)) * mask
    return torch.from_numpy(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", [1, 2, 5])
def test_coarse_is_the_mean_of_blocks_and_a_projection(shape, level):
    (latent,) = drawn(shape, 1)
    found = coarse(latent, level)
    torch.testing.assert_close(found, haar(latent, level))
    torch.testing.assert_close(coarse(found, level), found)
    half = coarse(latent.bfloat16(), level)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, coarse(latent.bfloat16().double(), level).bfloat16())


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 3, 6, 10), (4, 2)], ids=str)
def test_butterworth_is_the_published_filter(shape):
    (latent,) = drawn(shape, 1)
    torch.testing.assert_close(butterworth(latent), filtered(latent))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_butterworth_leaves_a_constant_as_it_is(shape):
    torch.testing.assert_close(butterworth(torch.ones(shape)), torch.ones(shape))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("done", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_imax_is_the_published_change_of_the_velocity(shape, done, schedule):
    noise, denoised, guide = drawn(shape, 3)
    sigma, level = 0.7, 1
    noisy = sigma * noise + (1 - sigma) * denoised
    velocity, towards = (noisy - denoised) / sigma, (noisy - guide) / sigma
    fading = 0.5 * (1 + math.cos(math.pi * done))
    low = haar(towards, level) - haar(velocity, level)
    changed = {
        "decay": velocity + fading * low,
        "shift": velocity + fading * (towards - velocity) + (1 - fading) * low,
        "constant": velocity + low,
    }[schedule]
    expected = noisy - sigma * changed
    torch.testing.assert_close(guided(denoised, guide, done, schedule, level, 1.0), expected, rtol=0, atol=1e-12)
    halfway = denoised + 0.5 * (expected - denoised)
    torch.testing.assert_close(guided(denoised, guide, done, schedule, level, 0.5), halfway, rtol=0, atol=1e-12)
    single = guided(denoised.float(), guide.float(), done, schedule, level, 1.0)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)


def test_strength_nothing_is_the_prediction_itself_and_the_low_frequencies_are_the_guides():
    denoised, guide = drawn((1, 16, 9, 12), 2)
    assert guided(denoised, guide, 0.5, "shift", 1, 0.0) is denoised
    found = guided(denoised, guide, 0.9, "constant", 2, 1.0)
    torch.testing.assert_close(coarse(found, 2), coarse(guide, 2))
    torch.testing.assert_close(found - coarse(found, 2), denoised - coarse(denoised, 2))


def test_bad_values_are_named():
    denoised, guide = drawn((1, 4, 8, 8), 2)
    with pytest.raises(ValueError, match="8 x 8 and 8 x 6 latents"):
        guided(denoised, guide[..., :6], 0.5, "decay", 1, 1.0)
    with pytest.raises(ValueError, match="schedule is 'linear'; expected one of decay, shift, constant"):
        guided(denoised, guide, 0.5, "linear", 1, 1.0)
    with pytest.raises(ValueError, match="level is 0"):
        guided(denoised, guide, 0.5, "decay", 0, 1.0)


def test_hiflow_is_the_published_steps():
    """Direction and acceleration over five steps, each as published: in velocities, with the step before."""
    alignment, sigmas, shape = Alignment(direction=0.8, acceleration=0.5), (1.0, 0.8, 0.55, 0.3, 0.1), (2, 4, 8, 10)
    state = None
    before = reference_before = None
    for step, sigma in enumerate(sigmas):
        noisy, denoised, reference = drawn(shape, 3, seed=step)
        left = (len(sigmas) - step) / len(sigmas)
        expected = denoised + 0.8 * left * (filtered(reference) - filtered(denoised))
        velocity, reference_velocity = (noisy - expected) / sigma, (noisy - reference) / sigma
        if before is not None:
            velocity = velocity + 0.5 * left * (before + reference_velocity - reference_before - velocity)
        before, reference_before = velocity, reference_velocity
        found, state = align(denoised, reference, noisy, sigma, step / len(sigmas), alignment, state)
        torch.testing.assert_close(found, noisy - sigma * velocity, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "sigma, expected", [(1.2, 0.0), (1.0, 0.0), (0.75, 0.125), (0.5, 0.25), (0.1, 0.75), (0.0, 1.0), (-1.0, 1.0)]
)
def test_progress(sigma, expected):
    assert progress(sigma, [1.0, 0.5, 0.3, 0.1, 0.0]) == pytest.approx(expected)


def test_a_run_without_a_step_has_no_progress():
    with pytest.raises(ValueError, match="1 sigmas"):
        progress(0.5, [1.0])
