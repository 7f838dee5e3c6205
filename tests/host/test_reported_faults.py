"""Faults that users of other packs reported, each as a graph over HTTP: what was lost, mixed up or not said."""

from __future__ import annotations

import importlib
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.host.support_comfy.fault_nodes import CALLED
from tests.host.support_comfy.pictures import write_halves, write_picture, write_vae_files
from tests.host.support_comfy.sampling import Graph, relative_error
from tests.host.support_comfy.server import Server, error_message, output_files, shown_text
from tests.host.support_comfy.soak_graphs import (
    BASES,
    CLEAR,
    IMAGE,
    MODEL,
    NEGATIVE,
    POSITIVE,
    STUDENT,
    TILES,
    VAE,
    WORK,
    common,
    node,
    upscale,
)

SUPPORT = Path(__file__).parent / "support_comfy"
NODES = ("fault_nodes.py", "test_only_pixels.py")
DELTA = "delta_4.safetensors"
SECOND = "second"
STEPS = 2
TWO_TILES = TILES | {"tile_overlap": 0}
"""Of a picture of 64 x 32 px that is enlarged twice."""


@pytest.fixture(scope="module")
def server(pack: ModuleType, server_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a picture, a mask, weights and a delta, a second folder of weights, and a VAE for other models."""
    models = server_base / "models"
    write_picture(server_base / "input" / "wide.png", 32, 64)
    write_halves(server_base / "input" / "left.png")
    write_vae_files(models / "vae_approx", name="taesd", channels=4)
    second = tmp_path_factory.mktemp("folders") / SECOND
    shutil.copytree(models / "clear" / "tiny", second / "tiny")
    paths = second / "paths.yaml"
    paths.write_text(f"second:\n  clear: {second}\n")
    save_delta = importlib.import_module(f"{pack.__name__}.clear_core.weights.delta").save_delta
    save_delta([models / "diffusion_models" / BASES[0]], models / "clear" / STUDENT, models / "clear" / DELTA)
    for name in NODES:
        shutil.copyfile(SUPPORT / name, server_base / "custom_nodes" / name)
    checkout, python = Path(sys.modules["nodes"].__file__).parent, Path(sys.executable)
    with Server(checkout, python, server_base, arguments=("--extra-model-paths-config", str(paths))) as running:
        yield running
    for name in NODES:
        (server_base / "custom_nodes" / name).unlink()
    (models / "clear" / DELTA).unlink()


@dataclass(frozen=True)
class Result:
    """What a graph gave.

    Attributes:
        latents: In order.
        pictures: In order.
        text: Everything that nodes showed, ``info`` included.
        error: The sentence that the run ended in.
        failed: The node that it ended in.
        calls: How often ClearTestCalls was called.
        log: What the server wrote meanwhile.
    """

    latents: list[torch.Tensor]
    pictures: list[Image.Image]
    text: str
    error: str
    failed: str
    calls: int
    log: str


@pytest.fixture
def run(server: Server) -> Callable[[Graph], Result]:
    """``run(graph)`` is what the server makes of a graph; it keeps results, so the same graph once more shows none."""

    def of(graph: Graph) -> Result:
        before = len(server.log)
        entry = server.run(graph, pause=0.02)
        log, error = server.log[before:], error_message(entry)
        files = [] if error else output_files(entry, server.base)
        failed = [facts["node_type"] for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
        return Result(
            [load_file(file)["latent_tensor"] for file in files if file.suffix == ".latent"],
            [Image.open(file) for file in files if file.suffix == ".png"],
            shown_text(entry),
            error,
            "".join(failed),
            log.count(CALLED),
            log,
        )

    return of


def graph_of(*, clear: dict[str, Any] | None = None, nodes: Graph | None = None, **inputs: Any) -> Graph:
    """A model with windows whose calls are counted, and CLEARUpscale with its ``info`` shown.

    Args:
        clear: Widgets of CLEARAttention.
        nodes: More nodes.
        **inputs: Of CLEARUpscale.
    """
    graph = common(random.Random(0), BASES[0], **(clear or {"weights_name": "none", "radius": 3}))
    graph[MODEL]["inputs"]["weight_dtype"] = "default"
    graph[IMAGE]["inputs"]["image"] = "wide.png"
    graph["inverted"] = node("ImageInvert", image=[IMAGE, 0])
    graph["left"] = node("LoadImage", image="left.png")
    graph["right"] = node("ImageInvert", image=["left", 0])
    graph["calls"] = node("ClearTestCalls", model=[CLEAR, 0], answers=False)
    graph |= nodes or {}
    graph = upscale(graph, random.Random(0), **{"model": ["calls", 0], "seed": 7, **inputs})
    graph["info"] = node("PreviewAny", source=[WORK, 2])
    return graph


def batch_of(name: str, *links: str) -> Graph:
    """Nodes that put pictures into one batch, the last of them called ``name``."""
    nodes, last = {}, links[0]
    for number, link in enumerate(links[1:], start=1):
        nodes[f"{name} {number}"] = node("ImageBatch", image1=[last, 0], image2=[link, 0])
        last = f"{name} {number}"
    return {**nodes, name: node("ImageFromBatch", image=[last, 0], batch_index=0, length=len(links))}


def masks_of(*links: str) -> Graph:
    """The node "masks": a batch of what is red in pictures."""
    images = batch_of("mask images", *links)
    return {**images, "masks": node("ImageToMask", image=["mask images", 0], channel="red")}


def bits(*results: Result) -> tuple[list[bytes], list[bytes]]:
    """Latents and pictures of results, bit by bit."""
    latents = [latent.numpy().tobytes() for result in results for latent in result.latents]
    return latents, [image.tobytes() for result in results for image in result.pictures]


@pytest.mark.parametrize("socket", ["image", "positive"])
def test_two_items_of_a_list_are_two_runs(run, socket):
    singles = {"image": (IMAGE, "inverted"), "positive": (POSITIVE, NEGATIVE)}[socket]
    if socket == "image":
        nodes = batch_of("both", *singles) | {"list": node("RebatchImages", images=["both", 0], batch_size=1)}
    else:
        nodes = {"list": node("ClearTestList", **{f"item{at}": [name, 0] for at, name in enumerate(singles)})}
    together = run(graph_of(nodes=nodes, **{socket: ["list", 0]}))
    alone = [run(graph_of(**{socket: [name, 0]})) for name in singles]
    assert together.calls == 2 * STEPS and len(together.latents) == 2
    assert not torch.equal(*together.latents) and bits(together) == bits(*alone)


@pytest.mark.parametrize("threshold", [0.2, 3.0], ids=["default", "everything"])
def test_a_cache_saves_as_much_in_tiles_as_of_the_frame(run, threshold):
    """The model's answer depends on nothing but the place, so that tiles give the frame's unless residuals mix."""
    cache = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    nodes = {
        "cache": node("EasyCache", model=[MODEL, 0], **cache),
        "calls": node("ClearTestCalls", model=["cache", 0], answers=True),
    }
    large = {"upscale_by": 8.0, "stages": 1, "steps": 8, "denoise": 1.0}
    two = {"tile_width": 256, "tile_height": 256, "tile_overlap": 0}
    whole, tiled = (run(graph_of(nodes=nodes, **large, **tiles)) for tiles in ({}, two))
    assert relative_error(tiled.latents[0], whole.latents[0]) < 1e-5
    assert whole.calls < 8 and tiled.calls == 2 * whole.calls


def test_tiles_of_a_forward_of_its_own_are_in_their_place(run):
    nodes = {"own": node("ClearTestOwnForward", model=[MODEL, 0])}
    stock, own = (run(graph_of(nodes=nodes, model=[name, 0], **TWO_TILES)) for name in (MODEL, "own"))
    assert relative_error(own.latents[0], stock.latents[0]) < 1e-5


def test_a_control_under_a_mask_leaves_the_other_tile_as_it_is(run):
    control = node("ClearTestMaskedControl", conditioning=[POSITIVE, 0], mask=["masks", 0])
    nodes = masks_of("left") | {"control": control}
    plain, masked = (run(graph_of(nodes=nodes, positive=[name, 0], **TWO_TILES)) for name in (POSITIVE, "control"))
    (before, after), tile = (plain.latents[0], masked.latents[0]), TILES["tile_width"] // 8
    assert torch.equal(before[..., tile:], after[..., tile:])
    assert relative_error(after[..., :tile], before[..., :tile]) > 0.01


def test_one_picture_and_three_masks_are_one_picture_under_the_first(run):
    three = run(graph_of(nodes=masks_of("left", "right", "right"), mask=["masks", 0]))
    assert len(three.latents) == len(three.pictures) == 1
    assert bits(three) == bits(run(graph_of(nodes=masks_of("left"), mask=["masks", 0])))


def test_two_masks_go_round_three_pictures(run):
    images = batch_of("images", IMAGE, "inverted", IMAGE)
    two, three = (
        run(graph_of(nodes=images | masks_of(*masks), image=["images", 0], mask=["masks", 0]))
        for masks in (("left", "right"), ("left", "right", "left"))
    )
    assert two.calls == STEPS and len(two.pictures) == 3 and two.latents[0].shape[0] == 3
    assert bits(two) == bits(three) and len(set(bits(two)[1])) == 3


def test_the_empty_mask_of_load_image_samples_nothing(run):
    empty = run(graph_of(mask=[IMAGE, 1]))
    assert empty.calls == 0 and len(empty.pictures) == 1
    assert "mask: empty, so that nothing is sampled" in empty.text and "nothing is sampled" in empty.log


def test_a_large_reference_counts_in_the_memory_that_is_announced(run):
    """Under an empty mask, so that the test is fast."""
    nodes = {
        "latent": node("EmptySD3LatentImage", width=2048, height=2048, batch_size=1),
        "reference": node("ReferenceLatent", conditioning=[POSITIVE, 0], latent=["latent", 0]),
    }
    said = []
    for name in (POSITIVE, "reference"):
        text = run(graph_of(nodes=nodes, positive=[name, 0], mask=[IMAGE, 1], seed=8)).text
        said += re.findall(r"about ([0-9.]+) GiB beside the weights", text)
    plain, reference = map(float, said)
    assert plain < 0.1 and reference > 0.1


def test_two_weights_files_of_one_name_are_said_with_their_folders(run, server):
    nodes = {"inspect": node("CLEARInspect", model=[CLEAR, 0])}
    result = run(graph_of(nodes=nodes, clear={"weights_name": STUDENT, "radius": 0}))
    pattern = re.escape(Path(STUDENT).name) + r" is taken from (.+); there is another file of this name in (.+)\."
    for text, times in ((result.text, 2), (result.log, 1)):
        found = re.findall(pattern, text)
        assert len(found) == times
        assert {Path(folder).parent.name for pair in found for folder in pair} == {"clear", SECOND}


def test_a_vae_of_another_model_ends_in_a_sentence_before_any_work(run):
    result = run(graph_of(nodes={VAE: node("VAELoader", vae_name="taesd")}))
    assert result.failed == "CLEARUpscale" and result.calls == 0
    assert "4 channels" in result.error and "16 channels" in result.error and "\n" not in result.error


def test_a_delta_that_the_model_carries_is_said(run, server):
    clear = {"weights_name": DELTA, "radius": 0}
    nodes = {"save": node("ModelSave", model=[CLEAR, 0], filename_prefix="carrying")}
    first = run(graph_of(clear=clear, nodes=nodes))
    (saved,) = (server.base / "output").glob("carrying*.safetensors")
    saved.replace(server.base / "models" / "diffusion_models" / "carrying.safetensors")
    nodes = {
        MODEL: node("UNETLoader", unet_name="carrying.safetensors", weight_dtype="default"),
        "inspect": node("CLEARInspect", model=[CLEAR, 0]),
    }
    again = run(graph_of(clear=clear, nodes=nodes))
    sentence = f"{DELTA} is added to a model that carries about 100 % of it already"
    assert again.text.count(sentence) == 2 and again.log.count(sentence) == 1
    assert "that carries" not in first.text + first.log
