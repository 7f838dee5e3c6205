"""The tiny FLUX that comes with the repository in a real ComfyUI: stock loader, one helper node, stock sampler."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.sampling import conditioning, predict, relative_error, run_graph, run_node

TINY = PROJECT / "demo" / "tiny_flux"
GRAPH = json.loads((PROJECT / "demo" / "comfyui" / "tiny_flux_windows_api.json").read_text())
RECORDED = PROJECT / "tests" / "golden" / "tiny_flux.safetensors"


@pytest.fixture(scope="module")
def tiny(host, pack):
    """The host with the model, its weights and the helper node installed; gives the class of a node."""
    models = host.base / "models"
    shutil.copy(TINY / "tiny_flux.safetensors", models / "diffusion_models" / "trained_tiny_flux.safetensors")
    (models / "clear" / "trained").mkdir(exist_ok=True)
    for path in (TINY / "windows").glob("*.safetensors"):
        shutil.copy(path, models / "clear" / "trained" / path.name)
    host.load_file(PROJECT / "demo" / "comfyui" / "tiny_flux_text_and_pixels.py")
    asyncio.run(
        host.nodes.load_custom_node(
            str(Path(host.nodes.__file__).parent / "comfy_extras" / "nodes_images.py"), module_parent="comfy_extras"
        )
    )
    return host.stock


def test_the_stock_loader_gives_the_model_of_diffusers(tiny):
    """Against a velocity that diffusers computed from the same file."""
    (model,) = run_node(tiny("UNETLoader"), unet_name="trained_tiny_flux.safetensors", weight_dtype="default")
    with safe_open(RECORDED, "pt") as file:
        case = {name: file.get_tensor(name) for name in set(file.keys())}
    flow = predict(
        model,
        case["latent"],
        case["sigma"].item(),
        conditioning(case["context"], case["pooled"], case["guidance"].item()),
    )
    assert relative_error(flow, case["velocity"]) < 2e-2, "bfloat16 weights and arithmetic, but no other difference"


def test_helper_reads_captions_and_keeps_pixels(tiny):
    clip, vae = run_node(tiny("TinyFluxTextAndPixels"))
    (cond,) = run_node(tiny("CLIPTextEncode"), clip=clip, text="a big red plain ball left, sea day")
    assert cond[0][0].shape == (1, 24, 128) and cond[0][1]["pooled_output"].shape == (1, 64)
    flat = torch.full((1, 48, 40, 3), 0.25)
    latent = run_node(tiny("VAEEncode"), vae=vae, pixels=flat)[0]
    assert latent["samples"].shape == (1, 16, 6, 4), "cut to multiples of 16 px"
    (again,) = run_node(tiny("VAEDecode"), vae=vae, samples=latent)
    torch.testing.assert_close(again, flat[:, :, :32], rtol=0, atol=1e-5)


def test_the_example_makes_its_base_picture(tiny):
    """A red thing to the left and a blue one to the right, as the caption says."""
    graph = json.loads(json.dumps(GRAPH).replace("tiny_flux.safetensors", "trained_tiny_flux.safetensors"))
    decode = next(key for key, node in graph.items() if node["class_type"] == "VAEDecode")
    (picture,) = run_graph(graph, tiny, decode)
    assert picture.shape == (1, 256, 256, 3) and picture.min() >= 0 and picture.max() <= 1
    left, right = picture[0, 150:230, 20:90].mean(dim=(0, 1)), picture[0, 150:230, 165:240].mean(dim=(0, 1))
    assert left[0] - left[2] > right[0] - right[2] + 0.1
