"""What is compiled and tested before the first picture is written on the node that waits for it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from PIL import Image

from tests.host.support_comfy.executor import Executor
from tests.host.support_comfy.pictures import VAE_NAME, picture, write_vae_files
from tests.host.support_comfy.sampling import Graph
from tests.host.support_comfy.server import TEST_NODE

CLEAR, SAMPLER = "2", "6"

MODEL: Graph = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    "3": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 7, "guidance": 3.5}},
    "4": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "small.png"}},
}

SAMPLERS: dict[str, Graph] = {
    "KSampler": {
        "7": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 192, "height": 128, "batch_size": 1}},
        SAMPLER: {
            "class_type": "KSampler",
            "inputs": {
                "model": [CLEAR, 0],
                "positive": ["3", 0],
                "negative": ["3", 0],
                "latent_image": ["7", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "8": {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": "latents/first"}},
    },
    "CLEARUpscale": {
        SAMPLER: {
            "class_type": "CLEARUpscale",
            "inputs": {
                "image": ["5", 0],
                "model": [CLEAR, 0],
                "positive": ["3", 0],
                "vae": ["4", 0],
                "upscale_by": 2.0,
                "seed": 7,
                "steps": 2,
                "denoise": 0.5,
            },
        },
        "8": {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 1], "filename_prefix": "latents/first"}},
    },
}


def workflow(sampler: str, backend: str) -> Graph:
    widgets = {"model": ["1", 0], "weights_name": "none", "radius": 3, "backend": backend}
    return {**MODEL, CLEAR: {"class_type": "CLEARAttention", "inputs": widgets}, **SAMPLERS[sampler]}


@pytest.fixture
def attention(host, pack, tmp_path, monkeypatch) -> Any:
    """The pack's ``clear_core.attention`` as after a start: nothing tested, nothing kept; "flex" compiles nothing."""
    write_vae_files(host.base / "models" / "vae_approx")
    pixels = (picture(96, 128)[0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(host.base / "input" / "small.png")
    if "ClearTestConditioning" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(TEST_NODE)
    core = f"{pack.__name__}.clear_core.attention"
    choose, first_use = (importlib.import_module(f"{core}.{name}") for name in ("choose", "first_use"))
    monkeypatch.setattr(choose, "_verdicts", {})
    monkeypatch.setattr(first_use, "user_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(type(choose.FLEX), "run", lambda backend, call: choose.DENSE.run(call))
    return choose


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_node_of_the_users_graph_says_what_is_compiled(sampler, attention):
    executor = Executor()

    def told() -> list[str]:
        assert executor.run(workflow(sampler, "flex"), ["8"]), executor.told
        texts = [(node, text) for node, text in executor.texts if "attention kernel" in text]
        assert {node for node, _ in texts} <= {SAMPLER}
        return [text for _, text in texts]

    begun, ended = told()
    what = 'Compiling and testing the attention kernel "flex" for the CPU'
    assert begun == f"{what} (for the first time here) ..."
    assert ended.startswith(f"{what} took ") and ended.endswith(" s.")
    attention._verdicts.clear()
    executor = Executor()
    took = ended.removeprefix(f"{what} took ").removesuffix(".")
    assert told()[0] == f"{what} (took {took} last time) ...", "the next start knows"
    executor = Executor()
    assert told() == []


def test_nothing_is_sent_where_nothing_is_compiled(attention):
    executor = Executor()
    assert executor.run(workflow("KSampler", "auto"), ["8"]), executor.told
    assert executor.texts == []


def test_outside_a_graph_there_is_no_node_to_write_on(pack, attention, monkeypatch):
    node_text = importlib.import_module(f"{pack.__name__}.nodes.host.node_text")
    assert node_text.running_node() is None
    node_text.write_on_node("nobody reads this", None)
