"""CLEARUpscale over HTTP on models of other families than FLUX.1: against stock nodes, in tiles, interrupted."""

from __future__ import annotations

import copy
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.host.support_comfy.pictures import write_halves, write_picture
from tests.host.support_comfy.sampling import Graph
from tests.host.support_comfy.server import Server, error_message, output_files
from tests.host.support_comfy.test_only_models import KINDS

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.

TEST_MODELS = Path(__file__).parent / "support_comfy" / "test_only_models"
MODEL, UPSCALE = "1", "6"

WORKFLOW: Graph = {
    MODEL: {"class_type": "ClearTestModel", "inputs": {}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "96x64.png"}},
    UPSCALE: {
        "class_type": "CLEARUpscale",
        "inputs": {
            "image": ["5", 0],
            "model": [MODEL, 0],
            "positive": [MODEL, 1],
            "vae": [MODEL, 2],
            "upscale_by": 2.0,
            "seed": 7,
            "steps": 2,
            "denoise": 0.5,
        },
    },
    "7": {"class_type": "SaveLatent", "inputs": {"samples": [UPSCALE, 1], "filename_prefix": "latents/ours"}},
    "8": {"class_type": "SaveImage", "inputs": {"images": [UPSCALE, 0], "filename_prefix": "ours"}},
}

STOCK: Graph = {
    "20": {"class_type": "ImageScale", "inputs": {"image": ["5", 0], "upscale_method": "lanczos", "crop": "disabled"}},
    "21": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": [MODEL, 2]}},
    "22": {
        "class_type": "KSampler",
        "inputs": {
            "model": [MODEL, 0],
            "positive": [MODEL, 1],
            "negative": [MODEL, 1],
            "latent_image": ["21", 0],
            "seed": 7,
            "steps": 2,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 0.5,
        },
    },
    "23": {"class_type": "SaveLatent", "inputs": {"samples": ["22", 0], "filename_prefix": "latents/stock"}},
}


@pytest.fixture(scope="module")
def kinds_server(server_base: Path) -> Iterator[Server]:
    """A server with the tiny models as nodes."""
    write_picture(server_base / "input" / "96x64.png", 64, 96)
    write_halves(server_base / "input" / "left.png")
    folder = server_base / "custom_nodes" / TEST_MODELS.name
    shutil.copytree(TEST_MODELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    with Server(Path(sys.modules["nodes"].__file__).parent, Path(sys.executable), server_base) as running:
        yield running
    shutil.rmtree(folder)


def workflow(kind: str, **widgets: Any) -> Graph:
    graph = copy.deepcopy(WORKFLOW)
    graph[MODEL]["inputs"]["kind"] = kind
    graph[UPSCALE]["inputs"].update(widgets)
    return graph


def results(server: Server, graph: Graph) -> tuple[dict[str, torch.Tensor], list[Image.Image]]:
    """Latents by the first word of their names, and the pictures of a run."""
    files = output_files(server.run(graph, seconds=500), server.base)
    latents = {file.name.split("_")[0]: load_file(file)["latent_tensor"] for file in files if file.suffix == ".latent"}
    return latents, [Image.open(file) for file in files if file.suffix == ".png"]


@pytest.mark.parametrize("name", KINDS)
def test_whole_against_stock_nodes_and_in_tiles_under_a_mask(kinds_server, name):
    kind = KINDS[name]
    graph = {**workflow(name), **copy.deepcopy(STOCK)}
    graph["20"]["inputs"].update(width=192, height=128)
    latents, (image,) = results(kinds_server, graph)
    assert image.size == (192, 128) and latents["ours"].ndim == (5 if kind.has_frames else 4)
    assert torch.equal(latents["ours"], latents["stock"])
    side = max(2 * kind.unit, 160)
    graph = workflow(name, upscale_by=4.0, tile_width=side, tile_height=side, tile_overlap=kind.unit, steps=1)
    graph["9"] = {"class_type": "LoadImageMask", "inputs": {"image": "left.png", "channel": "red"}}
    graph["10"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["5", 0], "amount": 2}}
    graph[UPSCALE]["inputs"].update(mask=["9", 0], image=["10", 0])
    latents, images = results(kinds_server, graph)
    assert [image.size for image in images] == [(384, 256)] * 2 and latents["ours"].shape[0] == 2
    enlarged = Image.open(kinds_server.base / "input" / "96x64.png")
    for size in ((192, 128), (384, 256)):
        enlarged = enlarged.resize(size, Image.Resampling.LANCZOS)
    right, left = (190, 0, 384, 256), (0, 0, 140, 256)
    first = images[0]
    assert first.crop(left).tobytes() != enlarged.crop(left).tobytes()
    found, expected = (
        torch.frombuffer(bytearray(each.crop(right).tobytes()), dtype=torch.uint8) for each in (first, enlarged)
    )
    assert (found.int() - expected.int()).abs().max() <= 2, "what is outside the mask is only enlarged"


def test_an_interrupt_ends_a_run_and_the_next_one_works(kinds_server):
    server = kinds_server
    prompt = server.post("/prompt", {"prompt": workflow("Qwen-Image", upscale_by=4.0, steps=500)})["prompt_id"]
    deadline = time.monotonic() + 300
    while "/500" not in server.log and time.monotonic() < deadline:
        time.sleep(0.2)
    urllib.request.urlopen(urllib.request.Request(server.url + "/interrupt", b"", method="POST"), timeout=30).close()
    entry = None
    while not entry and time.monotonic() < deadline:
        time.sleep(0.1)
        entry = server.get(f"/history/{prompt}").get(prompt)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds and error_message(entry) == ""
    results(server, workflow("Qwen-Image", seed=9))
