"""CLEARUpscale on several devices: full rounds of tiles are dealt out, the others run in strips."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.devices import loaded_flux, on_devices
from tests.host.support_comfy.graph_inputs import prompt

CLOSE = 1e-5
STEPS = {"steps": 4, "denoise": 0.5}


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def compare(host, count, clear_node, upscale, picture):
    """``compare(**inputs)``: the largest difference of the latents of one and several devices, and what is said."""

    def both(windows: bool = True, **inputs: Any) -> tuple[float, list[str]]:
        model = loaded_flux(host)
        if windows:
            model = clear_node(model, radius=3, controlnet="on")
        inputs = {"upscale_by": 2.0, "tile_overlap": 32, **STEPS, **inputs}
        alone = upscale(picture, model, **inputs)[1]
        with Recorder() as log:
            several = upscale(picture, on_devices(host, model, count), **inputs)[1]
        said = [line.removeprefix("CLEAR: ") for line in log.messages() if "strips on" in line or "dealt" in line]
        return float((several - alone).abs().max() / alone.abs().max()), said

    return both


def test_a_whole_frame_runs_in_strips(compare, count):
    difference, said = compare()
    assert difference < CLOSE
    assert len(said) == 1 and said[0].startswith(f"256 x 192 px in {count} strips on cpu, cpu:1")


def test_full_rounds_are_dealt_out_and_the_rest_is_strips(compare, count):
    """Six tiles; and seven, of which one is left."""
    names = ["cpu", "cpu:1", "cpu:2"][:count]
    difference, said = compare(tile_width=112, tile_height=112)
    assert difference < CLOSE and said == [f"6 of 6 tiles are dealt out to {', '.join(names)}"]
    difference, said = compare(tile_width=64, tile_height=192)
    assert difference < CLOSE
    assert said == [
        f"6 of 7 tiles are dealt out to {', '.join(names)}",
        f"64 x 192 px in {count} strips on {', '.join(names)}",
    ]


def test_without_windows_tiles_are_dealt_out_too(compare, count):
    difference, said = compare(windows=False, tile_width=112, tile_height=112)
    assert difference < CLOSE and len(said) == 1 and said[0].startswith("6 of 6 tiles")


def test_with_as_many_conditions_as_devices_the_host_deals_out(compare, count):
    difference, said = compare(tile_width=112, tile_height=112, cfg=2.0, negative=prompt(5, seed=9))
    assert difference < CLOSE and bool(said) == (count > 2)


@pytest.mark.parametrize("tile", [112, 0], ids=["tiles", "whole"])
def test_controls_masks_and_references(compare, load, applied, tile):
    mask = torch.zeros(1, 192, 256)
    mask[:, 20:150, 10:140] = 1
    area = prompt(reference_latents=[torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(3))])
    inputs = {"positive": applied(load("union"), area), "mask": mask}
    assert compare(tile_width=tile, tile_height=tile, **inputs)[0] < CLOSE


def test_a_failing_tile_ends_the_others_and_the_next_run_works(host, count, clear_node, upscale, picture):
    import comfy.model_management

    calls = []

    def attend(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((kwargs.get("transformer_options") or {}).get("multigpu_thread_device"))
        if calls.count(torch.device("cpu", 1)) > 5:
            raise comfy.model_management.OOM_EXCEPTION("no memory on the second device")
        return func(*args, **kwargs)

    base = loaded_flux(host)
    base.model_options["transformer_options"]["optimized_attention_override"] = attend
    broken = on_devices(host, clear_node(base, radius=3, dense_blocks="0-3"), count)
    inputs = {"tile_width": 112, "tile_height": 112, "tile_overlap": 32, **STEPS}
    began = time.monotonic()
    with pytest.raises(comfy.model_management.OOM_EXCEPTION, match="set tile_width and tile_height"):
        upscale(picture, broken, **inputs)
    assert time.monotonic() - began < 20 and not comfy.model_management.processing_interrupted()
    assert calls.count(torch.device("cpu", 1)) > 5
    good = clear_node(loaded_flux(host), radius=3)
    expected = upscale(picture, good, **inputs)[1]
    assert torch.allclose(upscale(picture, on_devices(host, good, count), **inputs)[1], expected, atol=1e-4)


def test_all_tiles_are_counted_as_work(host, count, clear_node, upscale, picture, host_part):
    """The throughput of a run on several devices is of all its work."""
    throughput = host_part("model.throughput")
    runs: dict[int, Any] = {}
    own = throughput.Run.throughput

    def keep(run: Any, out: torch.Tensor) -> Any:
        runs[id(run.counter)] = run.counter
        return own(run, out)

    model = clear_node(loaded_flux(host), radius=3)
    inputs = {"tile_width": 112, "tile_height": 112, "tile_overlap": 32, **STEPS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput.Run, "throughput", keep)
        upscale(picture, model, **inputs)
        upscale(picture, on_devices(host, model, count), **inputs)
        upscale(picture, model, **STEPS)
        upscale(picture, on_devices(host, model, count), **STEPS)
    tiled, dealt, whole, strips = ((each.calls, each.tokens, each.pairs) for each in runs.values())
    assert tiled == dealt and whole == strips and tiled[0] == 4 * 6
