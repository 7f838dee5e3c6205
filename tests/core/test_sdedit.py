"""The SDEdit pass: the published schedule, and the whole published run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clear_core import ClearSpec
from clear_core.sdedit import euler, noised, sdedit, sdedit_sigmas, static_shift

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = GOLDEN / "case_sdedit_local_r8.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["case"]), load_file(path)


def test_sigmas_are_the_published_ones(published: Any) -> None:
    case, tensors = published
    ours = sdedit_sigmas(case["steps"], case["strength"], case["shift"])
    assert ours.shape == (15,)
    torch.testing.assert_close(ours, tensors["sigmas"], rtol=5e-7, atol=0)  # published in float32


def test_whole_run_is_the_published_one(published: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    from clear_core.integrations.diffusers import apply_clear
    from clear_core.integrations.flux_denoiser import FluxDenoiser

    case, tensors = published
    model = diffusers.FluxTransformer2DModel(**case["config"]).eval()
    model.load_state_dict(load_file(GOLDEN / "base.safetensors"))
    student = load_file(GOLDEN / f"student_{case['student_seed']}_down{case['down_factor']}.safetensors")
    assert model.load_state_dict(student, strict=False).unexpected_keys == []
    denoiser = FluxDenoiser(model, tensors["encoder_hidden_states"], tensors["pooled"], case["guidance"])
    window = apply_clear(
        model,
        ClearSpec(case["radius"], case["down_factor"]),
        ntk_factor=case["ntk_factor"],
        proportional_attention="on",
    )
    with torch.no_grad(), window:
        out = sdedit(
            denoiser,
            tensors["image_latent"],
            tensors["noise"],
            steps=case["steps"],
            strength=case["strength"],
            shift=case["shift"],
        )
    expected = tensors["output_latent"]
    assert ((out - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.55, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 20, 28])
def test_sigmas_are_the_end_of_the_whole_schedule(steps: int, strength: float) -> None:
    whole, part = sdedit_sigmas(steps, 1.0), sdedit_sigmas(steps, strength)
    assert whole[0] == 1 and whole[-1] == 0 and len(whole) == steps + 1
    assert (whole.diff() < 0).all()
    assert len(part) == steps - int(steps - steps * strength) + 1 >= 2
    assert torch.equal(part, whole[-len(part) :])


def test_static_shift_is_inverted_by_the_inverse_shift() -> None:
    levels = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = static_shift(levels, 3.0)
    assert (shifted[1:-1] > levels[1:-1]).all()
    assert torch.allclose(static_shift(shifted, 1 / 3), levels)


def test_euler_is_exact_where_the_velocity_is_constant() -> None:
    image, noise = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8)
    out = sdedit(lambda latent, sigma: noise - image, image, noise, steps=10, strength=0.6)
    assert torch.allclose(out, image, atol=1e-6)


def test_denoiser_gets_every_level_but_the_last_and_progress_follows() -> None:
    seen: list[float] = []
    done: list[tuple[int, int]] = []
    sigmas = sdedit_sigmas(6, 0.7)
    euler(
        lambda latent, sigma: seen.append(sigma) or torch.zeros_like(latent),
        torch.zeros(1, 1, 2, 2),
        sigmas,
        on_step=lambda *progress: done.append(progress),
    )
    assert seen == sigmas[:-1].tolist()
    assert done == [(i, len(seen)) for i in range(1, len(seen) + 1)]


def test_an_interrupt_ends_the_loop_after_its_step() -> None:
    calls: list[float] = []

    def interrupt(done: int, steps: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        euler(
            lambda latent, sigma: calls.append(sigma) or latent,
            torch.zeros(1, 1, 2, 2),
            sdedit_sigmas(8, 1.0),
            on_step=interrupt,
        )
    assert len(calls) == 2


def test_half_precision_latents_keep_their_dtype() -> None:
    latent = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    assert euler(lambda x, sigma: x, latent, sdedit_sigmas(3, 1.0)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((0, 0.7, 3.0), "steps is 0", id="steps"),
        pytest.param((20.0, 0.7, 3.0), "steps is 20.0", id="steps-float"),
        pytest.param((20, 0.0, 3.0), "strength is 0", id="strength-0"),
        pytest.param((20, 1.1, 3.0), "strength is 1.1", id="strength-above-1"),
        pytest.param((20, float("nan"), 3.0), "strength is nan", id="strength-nan"),
        pytest.param((20, 0.7, 0.0), "shift is 0", id="shift"),
    ],
)
def test_refuses_values(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sdedit_sigmas(*arguments)


def test_refuses_noise_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"noise has shape \(1, 4, 4, 4\)"):
        noised(torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 4, 4), 0.5)
