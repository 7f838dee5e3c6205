"""Every golden case (the published code's own numbers) comes out of a real ComfyUI through CLEARAttention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.host.support_comfy.golden import TOLERANCE, GoldenCase, case_names, unpack
from tests.host.support_comfy.golden import pack as pack_tokens
from tests.host.support_comfy.sampling import conditioning, predict, relative_error, run_node

ONE_CALL = [name for name in case_names() if not name.startswith("sdedit")]
RUNS = [name for name in case_names() if name.startswith("sdedit")]


def predicted_tokens(model: Any, case: GoldenCase) -> torch.Tensor:
    """The model's velocity for the case's inputs, as packed tokens."""
    x = unpack(case.tensors["hidden_states"], case.grid)
    velocity = predict(model, x, case.facts["sigma"], conditioning(*case.text, case.facts["guidance"]))
    return pack_tokens(velocity)


def test_all_cases_are_here():
    assert len(ONE_CALL) == 7 and len(RUNS) == 1


def test_the_stock_model_gives_the_recorded_numbers(golden_flux):
    """Without CLEAR: checks the harness, its weights and its packing."""
    case = GoldenCase.load("full_1x")
    assert relative_error(predicted_tokens(golden_flux, case), case.tensors["output"]) < TOLERANCE


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_call(name, golden_flux, clear_node):
    case = GoldenCase.load(name)
    model = clear_node(golden_flux, **case.widgets)
    assert relative_error(predicted_tokens(model, case), case.tensors["output"]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name != "full_1x"])
def test_without_the_node_the_case_is_missed(name, golden_flux):
    """The cases tell CLEAR from the model alone, so the test above cannot pass by accident."""
    case = GoldenCase.load(name)
    assert relative_error(predicted_tokens(golden_flux, case), case.tensors["output"]) > 10 * TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_whole_run_with_stock_nodes(name, host, golden_flux, clear_node):
    """An SDEdit run: stock shift, scheduler, noise and sampler around the node."""
    case = GoldenCase.load(name)
    steps, strength = case.facts["steps"], case.facts["strength"]
    model = clear_node(golden_flux, **case.widgets)
    (model,) = run_node(host.stock("ModelSamplingAuraFlow"), model=model, shift=case.facts["shift"])
    (sigmas,) = run_node(
        host.stock("BasicScheduler"), model=model, scheduler="simple", steps=int(steps * strength), denoise=strength
    )
    torch.testing.assert_close(sigmas, case.tensors["sigmas"], rtol=1e-5, atol=1e-6)

    (noise,) = run_node(host.stock("RandomNoise"), noise_seed=case.facts["noise_seed"])
    (guider,) = run_node(
        host.stock("BasicGuider"), model=model, conditioning=conditioning(*case.text, case.facts["guidance"])
    )
    (sampler,) = run_node(host.stock("KSamplerSelect"), sampler_name="euler")
    space = golden_flux.model.latent_format
    latent = {"samples": space.process_out(case.tensors["image_latent"])}
    assert torch.equal(noise.generate_noise(latent), case.tensors["noise"])

    with torch.inference_mode():
        out, _ = run_node(
            host.stock("SamplerCustomAdvanced"),
            noise=noise,
            guider=guider,
            sampler=sampler,
            sigmas=sigmas,
            latent_image=latent,
        )
    assert relative_error(space.process_in(out["samples"]), case.tensors["output_latent"]) < TOLERANCE
