"""CLEAR on models whose weights are elsewhere between calls, applied and loaded before and after offloading."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clear_core import ClearSpec, weights
from clear_core.integrations.diffusers import apply_clear, load_clear
from tests.support.diffusers_flux import call_inputs, relative, run
from tests.support.diffusers_relatives import RELATIVES
from tests.support.trained_files import random_spatial, save_random

accelerate = pytest.importorskip("accelerate")

SPEC = ClearSpec(3, 2)
GRID = (6, 8)


def sequential(model: Any, folder: Path) -> None:
    """What ``enable_sequential_cpu_offload`` does, with the processor as the device that computes."""
    accelerate.cpu_offload(model, "cpu", offload_buffers=True)
    assert next(model.parameters()).device.type == "meta"


def whole(model: Any, folder: Path) -> None:
    """What ``enable_model_cpu_offload`` does."""
    accelerate.cpu_offload_with_hook(model, "cpu")


def group(model: Any, folder: Path, **options: Any) -> None:
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), **options)


def blocks(model: Any, folder: Path) -> None:
    group(model, folder, offload_type="block_level", num_blocks_per_group=1)


def leaves(model: Any, folder: Path) -> None:
    group(model, folder, offload_type="leaf_level")


def blocks_on_disk(model: Any, folder: Path) -> None:
    group(model, folder, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(folder))


def on_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), "cpu", offload_buffers=True)


IN_MEMORY = [sequential, whole, blocks, leaves]
WAYS = [*IN_MEMORY, blocks_on_disk, on_disk]


def named(way: Any) -> str:
    return way.__name__


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("first", ["CLEAR", "offloading"])
def test_pooling_weights_are_at_hand_in_each_call(flux, tmp_path, way, first):
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    spatial = random_spatial(1, 2)
    apply_clear(plain, SPEC, spatial_weights=spatial)
    wanted = run(plain, inputs)
    if first == "offloading":
        way(flux, tmp_path)
    handle = apply_clear(flux, SPEC, spatial_weights=spatial)
    if first == "CLEAR":
        way(flux, tmp_path)
    for _ in range(2):
        assert relative(run(flux, inputs), wanted) < 1e-6
    # The mean of each cell instead is another picture, so that lost weights would show.
    handle.remove()
    apply_clear(flux, SPEC)
    assert relative(run(flux, inputs), wanted) > 1e-5


@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image", "SD3.5 Medium"])
def test_pooling_weights_of_other_processors(name, tmp_path):
    kind = RELATIVES[name]
    model, inputs = kind.build(), kind.call(GRID)
    spatial = random_spatial(len(model.transformer_blocks), len(getattr(model, "single_transformer_blocks", ())))
    plain = copy.deepcopy(model)
    for each in (plain, model):
        apply_clear(each, SPEC, spatial_weights=spatial)
    sequential(model, tmp_path)
    assert relative(run(model, inputs), run(plain, inputs)) < 1e-6


@pytest.mark.parametrize("way", IN_MEMORY, ids=named)
@pytest.mark.parametrize("kind", ["replace", "delta", "lora"])
def test_weights_are_loaded_where_they_are_kept(flux, tmp_path, way, kind):
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    file = save_random(weights, tmp_path / "mine.safetensors", "FLUX.1", kind, (64, 1, 2), 2)
    for each in (flux, plain):
        apply_clear(each, SPEC)
    way(flux, tmp_path)
    before = run(flux, inputs)
    for each in (flux, plain):
        load_clear(each, file)
    wanted = run(plain, inputs)
    assert relative(before, wanted) > 1e-3
    for _ in range(2):
        assert relative(run(flux, inputs), wanted) < 1e-6


@pytest.mark.parametrize("way", [on_disk, blocks_on_disk], ids=named)
def test_weights_on_disk_are_refused_by_the_layers_name(flux, tmp_path, way):
    inputs = call_inputs(GRID)
    file = save_random(weights, tmp_path / "mine.safetensors", "FLUX.1", "replace", (64, 1, 2))
    way(flux, tmp_path / "offloaded")
    before = run(flux, inputs)
    with pytest.raises(
        ValueError, match=r"^transformer_blocks\.0\.attn\.to_q\.weight is .*on disk.* load the CLEAR file"
    ):
        load_clear(flux, file)
    assert torch.equal(run(flux, inputs), before)


def test_a_stream_that_copied_the_model_has_no_room_for_pooling_weights(flux, tmp_path):
    """diffusers would fail in its own code at the next call; a stream needs a card, so that this one is made up."""
    blocks(flux, tmp_path)
    held = flux.transformer_blocks[0]._diffusers_hook.hooks["group_offloading"].group
    held.stream = SimpleNamespace(synchronize=lambda: None)
    with pytest.raises(ValueError, match="group offloading with a stream was enabled before CLEAR"):
        apply_clear(flux, SPEC)
    apply_clear(flux, ClearSpec(3)).remove()


def test_a_streams_own_copy_gets_the_weights_too(flux, tmp_path):
    """After each call such a group goes back to its copy."""
    blocks(flux, tmp_path)
    held = flux.transformer_blocks[0]._diffusers_hook.hooks["group_offloading"].group
    own = flux.transformer_blocks[0].attn.to_q.weight
    held.cpu_param_dict[own] = own.data.clone()
    file = save_random(weights, tmp_path / "mine.safetensors", "FLUX.1", "replace", (64, 1, 2))
    load_clear(flux, file)
    trained = file.tensors()["transformer_blocks.0.attn.to_q.weight"]
    assert torch.equal(held.cpu_param_dict[own], trained) and torch.equal(own.data, trained)
