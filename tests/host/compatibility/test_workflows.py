"""Where the nodes stand in a workflow."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.host.support_comfy.executor import Executor
from tests.host.support_comfy.pictures import VAE_NAME, write_vae_files
from tests.host.support_comfy.sampling import Graph
from tests.host.support_comfy.server import TEST_NODE


def workflow(prefix: str, folder: str) -> Graph:
    """CLEARAttention, a KSampler and CLEARUpscale, with ids as the front end gives them inside a subgraph."""

    def link(node: str, output: int = 0) -> list:
        return [f"{prefix}{node}", output]

    nodes = {
        "clear": ("CLEARAttention", {"model": ["1", 0], "weights_name": "none", "radius": 3}),
        "sampler": (
            "KSampler",
            {
                "model": link("clear"),
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": 5,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "decode": ("VAEDecode", {"samples": link("sampler"), "vae": ["4", 0]}),
        "upscale": (
            "CLEARUpscale",
            {
                "image": link("decode"),
                "model": link("clear"),
                "positive": ["2", 0],
                "vae": ["4", 0],
                "upscale_by": 2.0,
                "seed": 7,
                "steps": 2,
                "denoise": 0.5,
            },
        ),
    }
    inside = {f"{prefix}{name}": {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 7, "guidance": 3.5}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
        **inside,
        "8": {"class_type": "SaveLatent", "inputs": {"samples": link("upscale", 1), "filename_prefix": folder}},
    }


@pytest.mark.row("Nodes inside subgraphs", "the same result, bit by bit, as outside")
def test_subgraph(cell, host, pack):
    write_vae_files(host.base / "models" / "vae_approx")
    if "ClearTestConditioning" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(TEST_NODE)
    latents: dict[str, torch.Tensor] = {}
    for prefix, folder in (("", "flat"), ("12:", "subgraph"), ("12:45:", "nested")):
        executor = Executor()
        assert executor.run(workflow(prefix, f"compatibility/{folder}"), ["8"]), executor.told
        (file,) = (host.base / "output" / "compatibility").glob(f"{folder}*.latent")
        latents[folder] = load_file(file)["latent_tensor"]
    cell.identical(latents["subgraph"], latents["flat"], "the graph without subgraphs")
    cell.identical(latents["nested"], latents["flat"], "the graph without subgraphs")
