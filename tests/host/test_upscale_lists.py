"""Lists into CLEARUpscale: every item comes out as if it ran alone, with stages of its own that are kept."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.host.support_comfy.executor import Executor
from tests.host.support_comfy.pictures import (
    VAE_NAME,
    write_halves,
    write_picture,
    write_upscale_model,
    write_vae_files,
)
from tests.host.support_comfy.sampling import Graph
from tests.host.support_comfy.server import TEST_NODE
from tests.host.support_comfy.upscaling import load_extras

UPSCALE, SAVE = "up", "save"
SIZES = {"small": (16, 24), "wide": (16, 40), "high": (32, 16)}

NODES: Graph = {
    "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    "r3": {"class_type": "CLEARAttention", "inputs": {"model": ["unet", 0], "weights_name": "none", "radius": 2}},
    "r5": {"class_type": "CLEARAttention", "inputs": {"model": ["unet", 0], "weights_name": "none", "radius": 3}},
    "day": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 7, "guidance": 3.5}},
    "night": {"class_type": "ClearTestConditioning", "inputs": {"seed": 2, "tokens": 9, "guidance": 3.5}},
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
    "other vae": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd3"}},
    "4x": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "list_4x.safetensors"}},
    "2x": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "list_2x.safetensors"}},
    "left": {"class_type": "LoadImageMask", "inputs": {"image": "left.png", "channel": "red"}},
    "right": {"class_type": "InvertMask", "inputs": {"mask": ["left", 0]}},
    **{name: {"class_type": "LoadImage", "inputs": {"image": f"list_{name}.png"}} for name in SIZES},
    UPSCALE: {
        "class_type": "CLEARUpscale",
        "inputs": {"upscale_by": 2.0, "seed": 7, "steps": 1, "denoise": 0.5, "stage_denoise": "0.7, 0.5"},
    },
    SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [UPSCALE, 1], "filename_prefix": "lists/up"}},
}

ONE = {"image": "small", "model": "r3", "positive": "day", "vae": "vae"}
"""The nodes of one item, by socket."""

TWO = {
    "image": ["small", "wide"],
    "model": ["r3", "r5"],
    "positive": ["day", "night"],
    "vae": ["vae", "other vae"],
    "negative": ["day", "night"],
    "upscale_model": ["4x", "2x"],
    "mask": ["left", "right"],
}
"""Two nodes for every socket."""


def graph_of(items: dict[str, list[str] | str], **widgets: Any) -> Graph:
    """The workflow in which each socket is linked to a node, or to a list of what several nodes give."""
    graph = copy.deepcopy(NODES)
    inputs = graph[UPSCALE]["inputs"]
    for socket, names in {**ONE, **items}.items():
        if isinstance(names, list):
            links = {f"item{number}": [name, 0] for number, name in enumerate(names)}
            graph[f"list of {socket}"] = {"class_type": "ClearTestList", "inputs": links}
            names = f"list of {socket}"
        inputs[socket] = [names, 0]
    inputs.update(widgets)
    return graph


def items_of(lists: dict[str, list[str]]) -> list[dict[str, str]]:
    """The nodes of each item, by the host's rule: shorter lists repeat their last one."""
    length = max(map(len, lists.values()))
    return [{socket: names[min(number, len(names) - 1)] for socket, names in lists.items()} for number in range(length)]


@pytest.fixture(scope="module")
def files(host, pack) -> None:
    folder = host.base / "models" / "vae_approx"
    write_vae_files(folder)
    write_vae_files(folder, seed=3, name="taesd3")
    for scale in (2, 4):
        write_upscale_model(host.base / "models" / "upscale_models" / f"list_{scale}x.safetensors", scale, seed=scale)
    for number, (name, size) in enumerate(SIZES.items()):
        write_picture(host.base / "input" / f"list_{name}.png", *size, seed=number)
    write_halves(host.base / "input" / "left.png")
    load_extras(host, "nodes_upscale_model.py", "UpscaleModelLoader")
    load_extras(host, "nodes_mask.py", "InvertMask")
    if "ClearTestList" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(TEST_NODE)


@pytest.fixture
def executor(files) -> Executor:
    return Executor()


@pytest.fixture
def results(host, executor):
    """``results(graph)`` runs a workflow and gives its latents in order."""

    def run(graph: Graph) -> list[torch.Tensor]:
        folder = host.base / "output" / "lists"
        for old in folder.glob("*.latent"):
            old.unlink()
        assert executor.run(graph, [SAVE]), executor.told
        return [load_file(path)["latent_tensor"] for path in sorted(folder.glob("*.latent"))]

    return run


@pytest.fixture
def samplings(monkeypatch) -> list[tuple[int, ...]]:
    """Gets the shape of the latent of every sampling."""
    import comfy.sample

    shapes, original = [], comfy.sample.sample
    monkeypatch.setattr(
        comfy.sample, "sample", lambda *args, **kwargs: shapes.append(tuple(args[8].shape)) or original(*args, **kwargs)
    )
    return shapes


def stages(executor: Executor) -> list[str]:
    """Ids of the stages that ran, without the node's own: item, run, stage."""
    return sorted(node.removeprefix(UPSCALE + ".") for node in executor.executed if node.startswith(UPSCALE + "."))


def test_every_socket_has_two_nodes(pack):
    expansion = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.expansion")
    assert set(TWO) == {"image", *expansion.SOCKETS}


@pytest.mark.parametrize("socket", TWO)
def test_a_list_into_one_socket(results, samplings, executor, socket):
    widgets = {"cfg": 2.0} if socket == "negative" else {}
    first, second = (results(graph_of({socket: name}, **widgets))[0] for name in TWO[socket])
    assert first.shape != second.shape or not torch.allclose(first, second, atol=1e-3)
    samplings.clear()
    both = results(graph_of({socket: TWO[socket]}, **widgets))
    assert len(both) == 2 and torch.equal(both[0], first) and torch.equal(both[1], second)
    assert samplings == [tuple(first.shape), tuple(second.shape)]


@pytest.mark.parametrize(
    "lists",
    [
        {"image": ["small", "wide", "high"], "model": ["r3", "r5"], "positive": ["night", "day"]},
        {"image": ["high", "small"], "positive": ["day", "night", "day"], "mask": ["right"], "model": ["r5"]},
    ],
    ids=["three pictures", "three prompts"],
)
def test_lists_of_different_lengths_in_several_stages(results, samplings, executor, lists):
    alone = [results(graph_of(item, upscale_by=4.0))[0] for item in items_of(lists)]
    samplings.clear()
    together = results(graph_of(lists, upscale_by=4.0))
    assert len(together) == 3 and all(map(torch.equal, together, alone))
    assert stages(executor) == [f"{item}.0.{stage}" for item in range(3) for stage in (1, 2)]
    assert len(samplings) == 3 * 2
    results(graph_of(lists, upscale_by=4.0))
    assert stages(executor) == []


def test_every_item_keeps_its_finished_stages(pack, results, executor, monkeypatch):
    """The last stage of the second picture fails; another run does that one and no other."""
    stage_module = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage")
    graph = graph_of({"image": ["small", "wide", "high"], "positive": ["day", "night"]}, upscale_by=4.0)
    original = stage_module.denoise

    def fails_at_wide(latent: torch.Tensor, *args: Any) -> torch.Tensor:
        if latent.shape[-2:] == (8, 20):
            raise ValueError("no luck")
        return original(latent, *args)

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "denoise", fails_at_wide)
        assert not executor.run(graph, [SAVE])
        assert "no luck" in executor.told
    finished = set(stages(executor)) - {"1.0.2"}
    out = results(graph)
    assert set(stages(executor)) == {f"{item}.0.{stage}" for item in range(3) for stage in (1, 2)} - finished
    assert finished >= {"1.0.1"} and [latent.shape[-2:] for latent in out] == [(8, 12), (8, 20), (16, 8)]
    changed = graph_of({"image": ["small", "wide", "high"], "positive": ["day", "night"]}, upscale_by=4.0)
    changed[UPSCALE]["inputs"]["stage_denoise"] = "0.7, 0.4"
    assert len(results(changed)) == 3 and stages(executor) == ["0.0.2", "1.0.2", "2.0.2"]
