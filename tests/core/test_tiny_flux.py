"""The tiny FLUX: encoding of captions, files, and a training that can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from demo.tiny_flux.caption import encode_captions, phrases
from demo.tiny_flux.data import held_out_scenes, training_batch
from demo.world import random_scene

pytest.importorskip("diffusers")

from demo.tiny_flux.model import new_tiny_flux, velocity
from demo.tiny_flux.train import RECIPE
from demo.tiny_flux.weights import (
    MODEL_FILE,
    diffusers_layout,
    load_tiny_flux,
    model_fingerprint,
    published_layout,
    save_tiny_flux,
)
from demo.training import Stage, train


def noisy_model(seed: int = 0) -> torch.nn.Module:
    """A tiny FLUX without any part at zero."""
    model = new_tiny_flux()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def test_a_fingerprint_is_the_sha_256_of_the_models_file(tmp_path: Path):
    content = MODEL_FILE.read_bytes()
    assert model_fingerprint() == hashlib.sha256(content).hexdigest()
    other = tmp_path / "other.safetensors"
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_fingerprint(other) == hashlib.sha256(other.read_bytes()).hexdigest() != model_fingerprint()


def test_every_caption_of_the_world_fits():
    import numpy as np

    longest = max((random_scene(np.random.default_rng(i)) for i in range(200)), key=lambda s: len(s.caption))
    assert sum(map(len, phrases(longest.caption))) <= 24


def test_binding_is_in_the_tokens():
    one, _ = encode_captions(["a red ball left, a blue box right"])
    two, _ = encode_captions(["a blue ball left, a red box right"])
    assert not torch.allclose(one[0, 1], two[0, 1]), "the ball does not know its colour"
    upper, _ = encode_captions(["A Red  BALL left , a shiny blue box right"])
    torch.testing.assert_close(upper, one)


def test_long_and_empty_captions():
    context, pooled = encode_captions(["", "red " * 60])
    assert context.shape == (2, 24, 128) and pooled.shape == (2, 64)
    assert pooled[0].abs().max() == 0 and context.isfinite().all()


def test_batches_depend_on_seed_and_step_alone():
    one, again, other = (training_batch(0, step, 2, (32, 48)) for step in (7, 7, 8))
    for name in ("latents", "noise", "sigma", "context"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    assert one.latents.shape == (2, 16, 4, 6) and one.sigma.min() > 0 and one.sigma.max() < 1
    assert held_out_scenes(2, first=1)[0] == held_out_scenes(2)[1]


def test_file_round_trip_and_published_names(tmp_path: Path):
    model = noisy_model()
    save_tiny_flux(model, tmp_path / "m.safetensors", {"note": "test"})
    again = load_tiny_flux(tmp_path / "m.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16).float(), again.state_dict()[name]), name
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "double_blocks.0.img_attn.norm.query_norm.scale" in set(file.keys())
        assert file.get_slice("single_blocks.2.linear1.weight").get_shape() == [3 * 256 + 1024, 256]
    assert (tmp_path / "m.safetensors").stat().st_size <= 12_000_000


def test_layouts_are_inverse():
    state = noisy_model().state_dict()
    again = diffusers_layout(published_layout(state), state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_velocity_heeds_every_input():
    model = noisy_model()
    context, pooled = encode_captions(["a big red plain ball left"])
    z = torch.randn(1, 16, 4, 6)
    one = torch.ones(1)
    out = velocity(model, z, one * 0.5, context, pooled, one)
    assert out.shape == z.shape
    assert not torch.allclose(out, velocity(model, z, one * 0.9, context, pooled, one))
    assert not torch.allclose(out, velocity(model, z, one * 0.5, *encode_captions(["snow"]), one))
    assert not torch.allclose(out, velocity(model, z, one * 0.5, context, pooled, one * 4))


def test_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    small = ((32, 48, 2), (48, 32, 2))
    stages = (Stage(3, small, (1e-3, 1e-3)), Stage(2, small, (1e-3, 1e-4), shift=0.5))
    options = {"seed": 3, "save_every": 1e9, "compiled": False}
    short = replace(RECIPE, stages=stages)
    whole = train(short, tmp_path / "whole", **options)
    train(replace(short, stages=stages[:1]), tmp_path / "parts", **options)
    parts = train(short, tmp_path / "parts", **options)
    assert not torch.equal(whole.proj_out.weight, new_tiny_flux(3).proj_out.weight)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)
    with safe_open(tmp_path / "whole" / "tiny_flux.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"seed": 3, "steps": 5, "pictures": 10}
