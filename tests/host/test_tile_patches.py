"""Controls that are applied inside the model's layers, in tiles: the host's own are cropped, others are named."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.kinds import GRID, SIGMA, TILE, in_tiles_of, noise
from tests.host.support_comfy.sampling import predict
from tests.host.support_comfy.test_only_models import KINDS

QWEN = KINDS["Qwen-Image"]


class Adder:
    """The model of such a control: what it makes of its picture is added to the hidden states, block by block."""

    additional_in_dim = 0
    n_control_layers = 2

    def process_input_latent_image(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(latent[:, :1].flatten(1, -3), 2).flatten(2).movedim(1, -1)

    def control_block(self, hidden: torch.Tensor, control: torch.Tensor, block: int) -> torch.Tensor:
        return control.expand_as(hidden)


@pytest.fixture
def patched(host, pack):
    """A tiny Qwen-Image with the host's own control inside its blocks, and what its model is asked to encode."""
    module = importlib.import_module("comfy_extras.nodes_model_patch")
    encoded: list[torch.Tensor] = []
    vae, adder = QWEN.vae(), Adder()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(pixels)
        return type(vae).encode(vae, pixels)

    watched = SimpleNamespace(encode=encode, spacial_compression_encode=vae.spacial_compression_encode)
    picture = torch.rand(1, 8 * 2 * GRID[0], 8 * 2 * GRID[1], 3, generator=torch.Generator().manual_seed(3))
    model = QWEN.build()
    control = module.DiffSynthCnetPatch(SimpleNamespace(model=adder), watched, picture, 0.5)
    control.to, control.models = (lambda device: control), (lambda: [])
    model.set_model_patch(control, "double_block")
    return model, control, encoded, picture


def test_the_hosts_own_control_gets_the_tiles_part_of_its_picture(patched, host_part):
    model, control, encoded, picture = patched
    encoded.clear()
    positive = QWEN.prompt()
    plain = predict(model, noise(QWEN), SIGMA, positive)
    assert encoded == []
    before = {name: value for name, value in vars(control).items() if isinstance(value, torch.Tensor)}
    with Recorder() as log:
        tiled = predict(in_tiles_of(host_part, QWEN, model), noise(QWEN), SIGMA, positive)
    assert not [line for line in log.messages() if "CLEAR" in line]
    assert len(encoded) == 6 and tiled.shape == plain.shape
    side = 16 * TILE[0]
    for pixels, (y, x) in zip(encoded, [(y, x) for y in (0, 1) for x in (0, 2, 3)], strict=True):
        assert torch.allclose(pixels, picture[:, 16 * y : 16 * y + side, 16 * x : 16 * x + side], atol=1e-6)
    assert all(getattr(control, name) is value for name, value in before.items())


def test_a_control_that_cannot_be_cropped_is_named_once(host, pack, host_part):
    class Foreign:
        """Another node's, with a picture and no way to encode it anew."""

        def __init__(self) -> None:
            self.picture = torch.rand(1, 64, 96, 3)

        def __call__(self, args: dict[str, Any]) -> dict[str, Any]:
            return args

    model = QWEN.build()
    model.set_model_patch(Foreign(), "double_block")
    with Recorder() as log:
        predict(in_tiles_of(host_part, QWEN, model), noise(QWEN), SIGMA, QWEN.prompt())
    (line,) = [line for line in log.messages() if "CLEAR" in line]
    assert "Foreign (double_block) is applied inside the model's layers" in line and "\n" not in line


def test_patches_without_a_picture_are_left_as_they_are(host, pack, host_part):
    calls = []
    model = QWEN.build()
    model.set_model_patch(lambda args: calls.append(args) or args, "double_block")
    with Recorder() as log:
        predict(in_tiles_of(host_part, QWEN, model), noise(QWEN), SIGMA, QWEN.prompt())
    assert len(calls) == 6 * 2 and not [line for line in log.messages() if "CLEAR" in line]
