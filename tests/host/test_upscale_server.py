"""CLEARUpscale over HTTP in a server of its own: large and awkward sizes, a batch, a mask, an interrupt."""

from __future__ import annotations

import copy
import math
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageStat
from safetensors.torch import load_file

from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.pictures import write_halves, write_picture
from tests.host.support_comfy.sampling import Graph
from tests.host.support_comfy.server import Server, error_message, output_files

TEST_PIXELS = Path(__file__).parent / "support_comfy" / "test_only_pixels.py"
UPSCALE, SAVE_LATENT, SAVE_IMAGE, MASK, BATCH = "6", "7", "8", "9", "10"

WORKFLOW: Graph = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    "2": {"class_type": "CLEARAttention", "inputs": {"model": ["1", 0], "weights_name": "none", "radius": 3}},
    "3": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 16, "guidance": 3.5}},
    "4": {"class_type": "ClearTestPixels", "inputs": {}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "96x64.png"}},
    UPSCALE: {
        "class_type": "CLEARUpscale",
        "inputs": {
            "image": ["5", 0],
            "model": ["2", 0],
            "positive": ["3", 0],
            "vae": ["4", 0],
            "upscale_by": 2.0,
            "seed": 7,
            "steps": 1,
            "denoise": 0.5,
        },
    },
    SAVE_LATENT: {"class_type": "SaveLatent", "inputs": {"samples": [UPSCALE, 1], "filename_prefix": "latents/up"}},
    SAVE_IMAGE: {"class_type": "SaveImage", "inputs": {"images": [UPSCALE, 0], "filename_prefix": "up"}},
}

SIZES = [(496, 1520), (1000, 1000), (768, 3072), (1024, 1024)]


def workflow(image: str = "96x64.png", **widgets: Any) -> Graph:
    graph = copy.deepcopy(WORKFLOW)
    graph["5"]["inputs"]["image"] = image
    graph[UPSCALE]["inputs"].update(widgets)
    return graph


def with_trained_flux(graph: Graph) -> Graph:
    """The workflow on the small trained FLUX with its distilled windows, its captions and its codec."""
    graph["1"]["inputs"]["unet_name"] = "trained/tiny_flux.safetensors"
    graph["2"]["inputs"].update(weights_name="trained/clear_local_8.safetensors", radius=0)
    graph["3"] = {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["4", 0], "text": "a big red plain ball left, sea day"},
    }
    graph["4"] = {"class_type": "TinyFluxTextAndPixels", "inputs": {}}
    graph[UPSCALE]["inputs"]["vae"] = ["4", 1]
    return graph


@pytest.fixture(scope="module")
def upscale_server(server_base: Path) -> Iterator[Server]:
    """A server with pictures to enlarge, a VAE that takes no time, and the small trained FLUX."""
    trained, helper = PROJECT / "demo" / "tiny_flux", PROJECT / "demo" / "comfyui" / "tiny_flux_text_and_pixels.py"
    for source, folder in (
        (trained / "tiny_flux.safetensors", "diffusion_models"),
        (trained / "windows" / "clear_local_8.safetensors", "clear"),
    ):
        (server_base / "models" / folder / "trained").mkdir(exist_ok=True)
        shutil.copyfile(source, server_base / "models" / folder / "trained" / source.name)
    (server_base / "custom_nodes" / helper.name).symlink_to(helper)  # it finds the demo from its real place
    for height, width in [*SIZES, (64, 96)]:
        write_picture(server_base / "input" / f"{width}x{height}.png", height, width)
    write_halves(server_base / "input" / "left.png")
    shutil.copyfile(TEST_PIXELS, server_base / "custom_nodes" / TEST_PIXELS.name)
    checkout = Path(sys.modules["nodes"].__file__).parent
    with Server(checkout, Path(sys.executable), server_base) as running:
        yield running
    for name in (TEST_PIXELS.name, helper.name):
        (server_base / "custom_nodes" / name).unlink()


def results(server: Server, graph: Graph) -> tuple[torch.Tensor, list[Image.Image]]:
    """Latent and pictures of a run."""
    files = output_files(server.run(graph, seconds=500), server.base)
    latents = [load_file(file)["latent_tensor"] for file in files if file.suffix == ".latent"]
    return latents[0], [Image.open(file) for file in files if file.suffix == ".png"]


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_full_sizes(upscale_server, height, width):
    latent, (image,) = results(upscale_server, with_trained_flux(workflow(f"{width}x{height}.png")))
    assert image.size == (2 * width, 2 * height)
    assert latent.shape == (1, 16, height // 4, width // 4) and latent.isfinite().all()
    assert min(ImageStat.Stat(image).stddev) > 8, "a flat picture"


@pytest.mark.parametrize("linked", [False, True], ids=["written", "linked"])
@pytest.mark.parametrize("widget", ["shift", "upscale_by"])
def test_a_number_that_is_none_ends_in_its_name_before_the_first_stage(upscale_server, widget, linked):
    graph = workflow(**{widget: ["20", 0] if linked else math.nan})
    graph["20"] = {"class_type": "PrimitiveFloat", "inputs": {"value": math.nan}}
    entry = upscale_server.run(graph)
    told = error_message(entry)
    assert told.startswith(f"{widget} is nan; expected a number from ") and "\n" not in told
    (failed,) = [facts for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
    assert failed["node_type"] == "CLEARUpscale"


def test_tiles_and_stages(upscale_server):
    latent, (image,) = results(
        upscale_server,
        workflow(upscale_by=4.0, tile_width=192, tile_height=128, tile_overlap=32, color_fix="wavelet", steps=2),
    )
    assert image.size == (384, 256) and latent.shape == (1, 16, 32, 48)


def test_a_batch_of_two(upscale_server):
    graph = workflow()
    graph[BATCH] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["5", 0], "amount": 2}}
    graph[UPSCALE]["inputs"]["image"] = [BATCH, 0]
    latent, images = results(upscale_server, graph)
    alone, _ = results(upscale_server, workflow())
    assert latent.shape == (2, 16, 16, 24) and len(images) == 2
    assert torch.allclose(latent[:1], alone, atol=1e-5) and not torch.allclose(latent[1:], alone, atol=1e-2)


def test_a_mask(upscale_server):
    graph = workflow()
    graph[MASK] = {"class_type": "LoadImageMask", "inputs": {"image": "left.png", "channel": "red"}}
    graph[UPSCALE]["inputs"]["mask"] = [MASK, 0]
    _, (image,) = results(upscale_server, graph)
    _, (whole,) = results(upscale_server, workflow())
    enlarged = Image.open(upscale_server.base / "input" / "96x64.png").resize((192, 128), Image.Resampling.LANCZOS)
    right, left = (90, 0, 192, 128), (0, 0, 70, 128)
    assert image.crop(right).tobytes() == enlarged.crop(right).tobytes()
    assert image.crop(left).tobytes() != enlarged.crop(left).tobytes()
    assert whole.crop(right).tobytes() != enlarged.crop(right).tobytes()


def test_a_list_of_pictures_prompts_and_masks(upscale_server):
    """Of different sizes and lengths: each as if it ran alone."""
    graph = workflow(upscale_by=4.0)
    graph[MASK] = {"class_type": "LoadImageMask", "inputs": {"image": "left.png", "channel": "red"}}
    graph["11"] = {"class_type": "InvertMask", "inputs": {"mask": [MASK, 0]}}
    graph["12"] = {"class_type": "ImageScale", "inputs": {"image": ["5", 0], "width": 48, "height": 80}}
    graph["12"]["inputs"].update(upscale_method="lanczos", crop="disabled")
    graph["13"] = {"class_type": "ClearTestConditioning", "inputs": {"seed": 2, "tokens": 12, "guidance": 3.5}}
    items = [("5", "3", MASK), ("12", "13", "11"), ("5", "13", "11")]
    sockets = ("image", "positive", "mask")

    def run(links: dict[str, list[Any]]) -> list[bytes]:
        graph[UPSCALE]["inputs"].update(links)
        files = output_files(upscale_server.run(graph, seconds=500), upscale_server.base)
        latents = [load_file(file)["latent_tensor"].numpy().tobytes() for file in files if file.suffix == ".latent"]
        return [*latents, *(Image.open(file).tobytes() for file in files if file.suffix == ".png")]

    alone = [run({socket: [node, 0] for socket, node in zip(sockets, item, strict=True)}) for item in items]
    for number, socket in enumerate(sockets):
        # The last prompt and the last mask stand for the third item too.
        nodes = [item[number] for item in items][: 3 if socket == "image" else 2]
        links = {f"item{place}": [node, 0] for place, node in enumerate(nodes)}
        graph[f"list of {socket}"] = {"class_type": "ClearTestList", "inputs": links}
    together = run({socket: [f"list of {socket}", 0] for socket in sockets})
    assert len(set(together)) == 6 and together == [*(one[0] for one in alone), *(one[1] for one in alone)]


def test_an_interrupt_ends_a_run_and_the_next_one_works(upscale_server):
    server = upscale_server
    prompt = server.post("/prompt", {"prompt": workflow("3072x768.png", steps=500, seed=8)})["prompt_id"]
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
    results(server, workflow(seed=9))
