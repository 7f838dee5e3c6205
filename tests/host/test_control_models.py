"""FLUX.1 Fill, Canny and Depth, as models and as LoRAs: latents beside the noisy one leave the windows unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.host.support_comfy.control_cases import SIGMA, noise, oracle, prompt
from tests.host.support_comfy.sampling import relative_error


@pytest.mark.parametrize("channels", [32, 96], ids=["canny and depth", "fill"])
def test_models_with_more_input_channels_have_the_methods_windows(tiny_flux, clear_node, predict, channels):
    model, x, positive, grid = tiny_flux(in_channels=channels, out_channels=16), noise(24, 36), prompt(), (12, 18)
    positive[0][1]["concat_latent_image"] = noise(24, 36, seed=7)
    expected = predict(oracle(model, grid, 4), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=4), x, SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(oracle(model, grid, 4), x, SIGMA, prompt()), expected) > 1e-3


def test_a_canny_or_depth_lora_widens_the_models_input(host, tiny_flux, clear_node, predict):
    """Black Forest Labs' form: a LoRA that adds a second latent to the model's input, before CLEAR or after it."""
    import comfy.sd

    generator = torch.Generator().manual_seed(11)
    lora = {
        "img_in.lora_A.weight": torch.randn(4, 128, generator=generator) * 0.3,
        "img_in.lora_B.weight": torch.randn(256, 4, generator=generator) * 0.3,
        "img_in.lora_B.bias": torch.randn(256, generator=generator) * 0.1,
        "single_blocks.0.norm.key_norm.scale": 1 + 0.1 * torch.randn(128, generator=generator),
        "single_blocks.0.linear1.lora_A.weight": torch.randn(4, 256, generator=generator) * 0.1,
        "single_blocks.0.linear1.lora_B.weight": torch.randn(1792, 4, generator=generator) * 0.1,
    }

    def with_lora(model: Any) -> Any:
        return comfy.sd.load_lora_for_models(model, None, dict(lora), 0.9, 0)[0]

    model, x, positive, grid = tiny_flux(), noise(24, 36), prompt(), (12, 18)
    positive[0][1]["concat_latent_image"] = noise(24, 36, seed=7)
    expected = predict(oracle(with_lora(model), grid, 4), x, SIGMA, positive)
    for patched in (clear_node(with_lora(model), radius=4), with_lora(clear_node(model, radius=4))):
        assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(oracle(with_lora(model), grid, 4), x, SIGMA, prompt()), expected) > 1e-3
