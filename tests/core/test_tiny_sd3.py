"""The tiny SD3: files in the published layout, its inputs, its training by the common loop, and the committed model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("diffusers")

from clear_core.position_table import PositionTable
from demo.tiny_flux.caption import encode_captions
from demo.tiny_flux.data import draw_latents, held_out_scenes
from demo.tiny_flux.evaluate import seeded_noise
from demo.tiny_sd3.model import CONFIG, new_tiny_sd3, velocity
from demo.tiny_sd3.train import RECIPE, STAGES
from demo.tiny_sd3.weights import MODEL_FILE, diffusers_layout, load_tiny_sd3, published_layout, save_tiny_sd3
from demo.training import Stage, train


def noisy_model(seed: int = 0) -> torch.nn.Module:
    """A tiny SD3 without any part at zero."""
    model = new_tiny_sd3()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def test_file_round_trip_and_published_names(tmp_path: Path):
    model = noisy_model()
    save_tiny_sd3(model, tmp_path / "m.safetensors", {"note": "test"})
    again = load_tiny_sd3(tmp_path / "m.safetensors")
    for name, tensor in model.state_dict().items():
        in_block = name.startswith("transformer_blocks") and tensor.ndim == 2
        stored = tensor.to(torch.float8_e4m3fn if in_block else torch.bfloat16)
        assert torch.equal(stored.float(), again.state_dict()[name]), name
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.get_slice("pos_embed").get_shape() == [1, 32 * 32, 192]
        assert file.get_slice("joint_blocks.0.context_block.attn.qkv.weight").get_shape() == [3 * 192, 192]
        assert "joint_blocks.2.context_block.attn.proj.weight" not in set(file.keys()), "the last text goes nowhere"


def test_layouts_are_inverse():
    state = noisy_model().state_dict()
    again = diffusers_layout(published_layout(state), state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_velocity_heeds_every_input():
    model = noisy_model()
    context, pooled = encode_captions(["a big red plain ball left"])
    z = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    one = torch.ones(1)
    out = velocity(model, z, one * 0.5, context, pooled)
    assert out.shape == z.shape
    assert not torch.allclose(out, velocity(model, z, one * 0.9, context, pooled))
    snow, snowy = encode_captions(["snow"])
    assert not torch.allclose(out, velocity(model, z, one * 0.5, snow, pooled))
    assert not torch.allclose(out, velocity(model, z, one * 0.5, context, snowy))


def test_training_is_the_common_loop(tmp_path: Path):
    stages = (Stage(2, ((32, 48, 2),), (1e-3, 1e-3)),)
    made = train(replace(RECIPE, stages=stages), tmp_path, seed=3, save_every=1e9, compiled=False)
    assert not torch.equal(made.proj_out.weight, new_tiny_sd3(3).proj_out.weight)
    state = load_tiny_sd3(tmp_path / "state.safetensors")
    assert torch.equal(state.proj_out.weight, made.proj_out.weight), "a training state gives its averaged weights"
    with safe_open(tmp_path / "tiny_sd3.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"seed": 3, "steps": 2, "pictures": 4}


def test_training_keeps_within_the_table():
    longest = max(side for stage in STAGES for *sides, _ in stage.sizes for side in sides)
    assert longest // 16 == 20 < CONFIG["pos_embed_max_size"]


def test_the_committed_model_is_the_trained_one():
    """Every held-out caption explains its own noisy picture better than another's caption does."""
    assert MODEL_FILE.stat().st_size < 6_000_000
    model, scenes = load_tiny_sd3(), held_out_scenes(8)
    table = PositionTable.read(model.pos_embed.pos_embed)
    assert (table.side, table.first) == (32, 0) and table.step == pytest.approx(2, rel=1e-4)
    latents, noise = draw_latents(scenes, (256, 256)), seeded_noise(8, (256, 256), 1)
    captions, sigma = [scene.caption for scene in scenes], torch.full((8,), 0.9)
    errors = []
    with torch.inference_mode():
        for told in (captions, captions[1:] + captions[:1]):
            flow = velocity(model, 0.9 * noise + 0.1 * latents, sigma, *encode_captions(told))
            errors.append((flow - (noise - latents)).square().mean((1, 2, 3)))
    assert (errors[0] < errors[1]).all()
    assert errors[0].mean() < 0.25
