"""Masks of Advanced-ControlNet in tiles: each tile has its own part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.controlnets import write_xlabs_file
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.sampling import run_node

GRID, TILE, SIGMA = (8, 16), (8, 10), 0.6


def left_half() -> torch.Tensor:
    """In pixels: 1 over the left half, 0 over the right one."""
    return torch.cat((torch.ones(1, 128, 128), torch.zeros(1, 128, 128)), -1)


@pytest.fixture
def residuals(tiny_flux, in_tiles, predict) -> Callable[..., list[torch.Tensor]]:
    """``residuals(positive, tiles)`` is what a ControlNet adds in every call, (B, tokens, C)."""

    def run(positive: list, tiles: bool) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def watch(
            executor: Any, x: torch.Tensor, t: Any, concat: Any, text: Any, control: Any, *_: Any, **__: Any
        ) -> torch.Tensor:
            seen.append(control["input"][0])
            return x * 0.5

        model = tiny_flux(depth=1, depth_single_blocks=1)
        model.add_wrapper_with_key("apply_model", "watch", watch)
        predict(in_tiles(model, GRID, TILE, 4) if tiles else model, noise(16, 32), SIGMA, positive)
        return seen

    return run


@pytest.mark.parametrize("where", ["apply node", "keyframe"])
def test_a_mask_over_the_left_half_acts_there_alone(host, residuals, use_pack, where):
    use_pack("ComfyUI-Advanced-ControlNet")
    folder = host.base / "models" / "controlnet"
    folder.mkdir(exist_ok=True)
    file = write_xlabs_file(folder / "masked.safetensors", seed=5)
    (control,) = run_node(host.stock("ACN_ControlNetLoaderAdvanced"), cnet=file.name)
    masks = {"mask_optional": left_half()}
    if where == "keyframe":
        keyframes = run_node(host.stock("TimestepKeyframe"), start_percent=0.0, mask_optional=left_half())[0]
        masks = {"timestep_kf": keyframes}
    positive = run_node(
        host.stock("ACN_AdvancedControlNetApply_v2"),
        positive=prompt(),
        negative=prompt(),
        control_net=control,
        image=torch.rand(1, 128, 256, 3, generator=torch.Generator().manual_seed(3)),
        strength=0.8,
        start_percent=0.0,
        end_percent=1.0,
        **masks,
    )[0]
    acts = [(each.abs().amax(-1) > 0).reshape(GRID[0], -1).any(0) for each in residuals(positive, tiles=False)]
    assert torch.equal(acts[0], torch.arange(16) < 8), "the pack itself masks in another way"
    left, right = ((each.abs().amax(-1) > 0).reshape(GRID[0], -1).any(0) for each in residuals(positive, tiles=True))
    assert torch.equal(left, torch.arange(10) < 8)
    assert torch.equal(right, torch.arange(6, 16) < 8)
