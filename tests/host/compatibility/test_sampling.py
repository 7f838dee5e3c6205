"""Guidance, tiles, devices, quantised models.

Packs are the real ones, from the host's own custom_nodes; a pack that does not work in a ComfyUI without CLEAR is
named there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.devices import loaded_flux, on_devices
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import run_node

RADIUS, SIGMA = 3, 0.6


class AveragingVAE:
    """Eight by eight pixels to one latent position and back; what the upscaler needs of a VAE."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8)
        return torch.cat([small - 0.5] * 6, dim=1)[:, :16]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2).movedim(1, -1) * 0.2 + 0.5).clamp(0, 1)


@pytest.mark.row("NAGuidance", "guides what the windows see")
@ORDERS
def test_nag(cell, model, clear_node, run, stock, order):
    def guided(model: Any) -> Any:
        return run_node(stock("NAGuidance", "nodes_nag"), model=model, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)[0]

    graph = {"positive": prompt(), "negative": prompt(seed=9), "latent": torch.zeros(1, 16, 12, 14), "cfg": 1.0}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), guided)
    windows = with_oracle_windows(model, RADIUS)
    expected = run(guided(windows), **graph)
    cell.oracle(run(patched, **graph), expected, run(guided(model), **graph))
    assert (run(windows, **graph) - expected).norm() > 1e-2, "the guidance does nothing"


@pytest.mark.row("MultiGPU CFG Split", "every clone has its own windows, in its own thread")
@ORDERS
def test_multigpu_clones(cell, host, clear_node, run, stock, monkeypatch, order):
    import comfy.model_management

    node = stock("MultiGPU_WorkUnits", "nodes_multigpu")
    devices = [torch.device("cpu"), torch.device("cpu", 1)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda **_: list(devices))
    (model,) = run_node(host.stock("UNETLoader"), unet_name="tiny_flux.safetensors", weight_dtype="default")

    def split(model: Any) -> Any:
        return run_node(node, model=model, max_gpus=2)[0]

    graph = {"positive": prompt(), "negative": prompt(5, seed=9), "latent": torch.zeros(1, 16, 12, 14), "cfg": 3.0}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), split)
    assert len(patched.get_additional_models_with_key("multigpu")) == 1
    cell.oracle(run(patched, **graph), run(with_oracle_windows(model, RADIUS), **graph), run(model, **graph))


@pytest.mark.row("MultiGPU CFG Split at cfg 1", "every device computes a strip of the one picture")
def test_strips(cell, host, count, clear_node, run):
    model = loaded_flux(host)
    graph = {"positive": prompt(), "latent": torch.zeros(1, 16, 25, 22), "cfg": 1.0}
    with Recorder() as log:
        found = run(on_devices(host, clear_node(model, radius=RADIUS), count), **graph)
    cell.oracle(found, run(with_oracle_windows(model, RADIUS), **graph), run(model, **graph))
    assert f"in {count} strips on" in "".join(log.messages())


@pytest.mark.row("TiledDiffusion", "every tile has its windows; scale and ntk_factor go by the tile's size")
@ORDERS
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion"])
def test_tiled_diffusion(cell, host, model, clear_node, run, use_pack, order, method):
    use_pack("ComfyUI-TiledDiffusion")

    def tiled(model: Any) -> Any:
        return run_node(
            host.stock("TiledDiffusion"),
            model=model,
            method=method,
            tile_width=96,
            tile_height=80,
            tile_overlap=32,
            tile_batch_size=2,
        )[0]

    graph = {"positive": prompt(), "latent": torch.zeros(1, 16, 16, 20), "steps": 2}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), tiled)
    windows = with_oracle_windows(model, RADIUS)
    expected = run(tiled(windows), **graph)
    cell.oracle(run(patched, **graph), expected, run(tiled(model), **graph))
    assert (run(windows, **graph) - expected).norm() > 1e-2, "there were no tiles"


@pytest.mark.row("Ultimate SD Upscale", "every tile has its windows; scale and ntk_factor go by the tile's size")
def test_ultimate_sd_upscale(cell, host, model, clear_node, use_pack):
    use_pack("ComfyUI_UltimateSDUpscale")

    def upscaled(model: Any) -> torch.Tensor:
        picture = torch.rand(1, 96, 160, 3, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            return run_node(
                host.stock("UltimateSDUpscaleNoUpscale"),
                upscaled_image=picture,
                model=model,
                positive=prompt(),
                negative=prompt(),
                vae=AveragingVAE(),
                seed=3,
                steps=2,
                cfg=1.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=0.7,
                mode_type="Linear",
                tile_width=96,
                tile_height=96,
                mask_blur=4,
                tile_padding=16,
                seam_fix_mode="None",
                seam_fix_denoise=1.0,
                seam_fix_mask_blur=4,
                seam_fix_width=16,
                seam_fix_padding=16,
                force_uniform_tiles=True,
                tiled_decode=False,
            )[0]

    # Its pictures have 256 levels: one of them is 0.4 % of the brightest.
    cell.oracle(
        upscaled(clear_node(model, radius=RADIUS)),
        upscaled(with_oracle_windows(model, RADIUS)),
        upscaled(model),
        tolerance=5e-4,
    )


@pytest.fixture
def dype(host: Any, use_pack: Callable[..., Any]) -> Callable[[Any], Any]:
    """``dype(model)`` is what DyPE's node makes of a model."""
    use_pack("ComfyUI-DyPE")

    def apply(model: Any) -> Any:
        return run_node(
            host.stock("DyPE_FLUX"),
            model=model,
            width=112,
            height=96,
            model_type="auto",
            method="vision_yarn",
            yarn_alt_scaling=False,
            enable_dype=True,
            base_resolution=256,
        )[0]

    return apply


@pytest.mark.row("DyPE", "its position embedder is kept, ours is off, windows are on; said in one line with ntk_factor")
@ORDERS
@pytest.mark.parametrize("loaded", [False, True], ids=["", "model in memory"])
def test_dype(cell, tiny_flux, clear_node, predict, run, dype, order, loaded):
    def build() -> Any:
        """The same model every time: the pack leaves its noise schedule on it for good."""
        return tiny_flux(depth=1, depth_single_blocks=1)

    def clear(model: Any) -> Any:
        patched = clear_node(model, radius=RADIUS, ntk_factor=10.0)
        if loaded:  # as in a second run of a workflow: our embedder is still on the model
            predict(patched, noise(12, 14), SIGMA, prompt())
        return patched

    graph = {"positive": prompt(), "latent": torch.zeros(1, 16, 12, 14), "steps": 2}
    with Recorder() as log:
        actual = run(in_order(order, build(), clear, dype), **graph)
    cell.oracle(actual, run(dype(with_oracle_windows(build(), RADIUS)), **graph), run(dype(build()), **graph))
    cell.one_line(log.messages(), "PosEmbedFlux", "10")


@pytest.mark.row("MultiGPU (pollockjj)", "models of its loaders get windows")
def test_multigpu_pack(cell, host, clear_node, predict, use_pack, stock):
    stock("QuadrupleCLIPLoader", "nodes_hidream")  # The pack derives from it, and our short boot leaves it out.
    use_pack("ComfyUI-MultiGPU")
    (model,) = run_node(
        host.stock("UNETLoaderMultiGPU"), unet_name="tiny_flux.safetensors", weight_dtype="default", device="cpu"
    )
    x = noise(12, 14)
    cell.oracle(
        predict(clear_node(model, radius=RADIUS), x, SIGMA, prompt()),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, prompt()),
        predict(model, x, SIGMA, prompt()),
    )


@pytest.mark.row("ComfyUI-GGUF", "quantised models get windows")
def test_gguf(cell, host, model, clear_node, predict, use_pack):
    gguf = pytest.importorskip("gguf")
    use_pack("ComfyUI-GGUF")
    path = host.base / "models" / "diffusion_models" / "tiny_for_windows.gguf"
    writer = gguf.GGUFWriter(str(path), arch="flux")
    for name, weight in model.model.diffusion_model.state_dict().items():
        name = name.replace("_norm.weight", "_norm.scale")
        if weight.ndim == 2 and "blocks" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    for finish in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        finish()
    (quantised,) = run_node(host.stock("UnetLoaderGGUF"), unet_name=path.name)
    x = noise(12, 14)
    cell.oracle(
        predict(clear_node(quantised, radius=RADIUS), x, SIGMA, prompt()),
        predict(with_oracle_windows(quantised, RADIUS), x, SIGMA, prompt()),
        predict(quantised, x, SIGMA, prompt()),
    )
