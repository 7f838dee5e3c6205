"""Several devices whose models do not compute the same, or whose threads do not run: the picture of one device."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.devices import loaded_flux, on_devices
from tests.host.support_comfy.graph_inputs import noise, prompt

CLOSE = 1e-5
GRID = (25, 22)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture
def graph() -> dict[str, Any]:
    return {"positive": prompt(), "latent": noise(*GRID) * 0, "steps": 4}


@pytest.fixture
def lora() -> dict[str, torch.Tensor]:
    """For whole weights, so that it can be loaded in bypass mode too."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"transformer.transformer_blocks.{block}.attn.to_out.0.lora_{side}.weight": torch.randn(
            shape, generator=generator
        )
        * 0.3
        for block in range(2)
        for side, shape in (("A", (4, 256)), ("B", (256, 4)))
    }


def caching(model: Any) -> Any:
    """As TeaCache does it: a function around the model exchanges a method, which leaves out every second call."""
    flux = model.get_model_object("diffusion_model")
    stock, kept = type(flux).forward_orig, []

    def forward_orig(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        kept.append(kept[-1] if len(kept) % 2 else stock(self, *args, **kwargs))
        return kept[-1]

    def around(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        with mock.patch.object(flux, "forward_orig", forward_orig.__get__(flux)):
            return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(around)
    return clone


def test_a_method_exchanged_on_the_first_device(host, count, clear_node, run, graph):
    """A cache that leaves out blocks on one device: the others waited ten minutes for it."""
    expected = run(caching(clear_node(loaded_flux(host), radius=3)), **graph)
    model = on_devices(host, caching(clear_node(loaded_flux(host), radius=3)), count)
    began = time.monotonic()
    with Recorder() as log:
        several = run(model, **graph)
    assert time.monotonic() - began < 20
    assert any("exchanged forward_orig of Flux" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


def in_bypass(model: Any, lora: dict[str, torch.Tensor]) -> Any:
    """The model with a LoRA that is computed beside its layers, as LoraLoaderBypassModelOnly does it."""
    import comfy.sd

    return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), 1.0, 0)[0]


def test_a_lora_in_bypass_mode(host, count, clear_node, run, graph, lora):
    """The host puts it on the first device alone."""
    model = clear_node(loaded_flux(host), radius=3)
    expected = run(in_bypass(model, lora), **graph)
    assert difference(expected, run(model, **graph)) > 0.01
    with Recorder() as log:
        several = run(on_devices(host, in_bypass(model, lora), count), **graph)
    assert any("exchanged forward of Linear" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


def test_a_lora_in_bypass_mode_and_tiles(host, count, clear_node, upscale, lora):
    picture = torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(5))
    inputs = {"upscale_by": 2.0, "tile_width": 112, "tile_height": 112, "tile_overlap": 32, "denoise": 0.5}
    model = clear_node(loaded_flux(host), radius=3)
    expected = upscale(picture, in_bypass(model, lora), **inputs)[1]
    with Recorder() as log:
        several = upscale(picture, on_devices(host, in_bypass(model, lora), count), **inputs)[1]
    assert not any("dealt out" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


def test_a_block_that_all_devices_share(host, count, clear_node, run, graph):
    """The host hands an object patch to all clones, with the weights of the first device."""

    class Wrapped(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.block(*args, **kwargs)

    place = "diffusion_model.single_blocks.1"
    base = loaded_flux(host)
    base.add_object_patch(place, Wrapped(base.get_model_object(place)))
    model = clear_node(base, radius=3)
    expected = run(model, **graph)
    with Recorder() as log:
        several = run(on_devices(host, model, count), **graph)
    assert any("of another node has its weights on one device" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


@pytest.mark.parametrize("hooked", [1, 2, 3])
def test_a_lora_of_an_earlier_condition(host, count, clear_node, run, graph, lora, hooked):
    """A hook's LoRA stays on the devices that it was applied to, until a condition without it comes."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    first = [each for seed in range(hooked) for each in prompt(seed=5 + seed, hooks=hooks, end_percent=0.5)]
    for each in first:
        each[1]["start_percent"] = 0.0
    graph["positive"] = [*first, *prompt(seed=20, start_percent=0.5, end_percent=1.0)]
    model = clear_node(loaded_flux(host), radius=3)
    expected = run(model, **graph)
    with Recorder() as log:
        several = run(on_devices(host, model, count), **graph)
    assert any("strips on" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


def test_an_embedder_that_reads_the_size_off_the_ids(host, count, clear_node, upscale):
    """In tiles another node's embedder is wrapped; a strip's rows are not the tile's."""
    from comfy.ldm.flux.layers import EmbedND

    class Stretching(EmbedND):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids * (1 + ids[..., 1].amax() / 40))

    base = loaded_flux(host)
    own = base.get_model_object("diffusion_model").pe_embedder
    base.add_object_patch("diffusion_model.pe_embedder", Stretching(own.dim, own.theta, own.axes_dim))
    model = clear_node(base, radius=3)
    picture = torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(5))
    inputs = {"upscale_by": 2.0, "tile_width": 64, "tile_height": 192, "tile_overlap": 32, "denoise": 0.5}
    expected = upscale(picture, model, **inputs)[1]
    with Recorder() as log:
        several = upscale(picture, on_devices(host, model, count), **inputs)[1]
    assert any("the positions that Stretching makes" in line for line in log.messages())
    assert difference(several, expected) < CLOSE


def test_a_device_that_cannot_be_used(host, count, clear_node, run, graph, monkeypatch):
    """Its thread does no work at all; the others waited ten minutes for it."""
    import comfy.model_management

    def lost(device: torch.device) -> None:
        if device == torch.device("cpu", 1):
            raise RuntimeError("the second device is lost")

    model = on_devices(host, clear_node(loaded_flux(host), radius=3), count)
    began = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="second device is lost"):
        patch.setattr(comfy.model_management, "set_torch_device", lost)
        run(model, **graph)
    assert time.monotonic() - began < 20
    assert run(model, **graph).isfinite().all()


def test_a_device_that_leaves_out_attention(host, count, clear_node, run, graph, host_part, monkeypatch):
    """Where nothing foretells it: the run ends at once, in one sentence."""
    part = host_part("model.strip_part").StripPart
    windows = part.windows

    def some(self: Any, q: torch.Tensor, *args: Any) -> torch.Tensor:
        return torch.zeros_like(q) if self.peers.rank == 1 else windows(self, q, *args)

    monkeypatch.setattr(part, "windows", some)
    model = on_devices(host, clear_node(loaded_flux(host), radius=3), count)
    began = time.monotonic()
    with pytest.raises(ValueError, match="same calls of attention.*take MultiGPU CFG Split off"):
        run(model, **graph)
    assert time.monotonic() - began < 20


def test_a_wrapper_that_reads_arguments_by_position(host, count, clear_node, run, graph):
    """The host calls wrappers of ``apply_model`` by position, on one device and on several."""
    model, seen = clear_node(loaded_flux(host), radius=3), []

    def read(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((args[3].shape, args[5]["sigmas"].shape))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key("apply_model", "reader", read)
    expected = run(model, **graph)
    assert difference(run(on_devices(host, model, count), **graph), expected) < CLOSE
    assert seen == [((1, 7, 64), (1,))] * 8
