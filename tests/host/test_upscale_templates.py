"""The templates: the stock recipe without our upscale node gives the same result as our node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.host.support_comfy.pictures import VAE_NAME, picture, write_vae_files
from tests.host.support_comfy.sampling import Graph, conditioning, run_node

TEMPLATES = Path(__file__).parents[2] / "example_workflows"
STOCK, NODE, PAPER = "clear_stock_nodes_1k_to_4k", "clear_text_to_image_1k_to_4k", "clear_upscale_as_in_the_paper"
NOT_SENT = ("fixed", "increment", "decrement", "randomize", "image")  # of seeds and of the upload button
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def api_form(template: dict[str, Any], stock: Any) -> Graph:
    """A saved workflow as the front end sends it: links by socket, widget values by position."""
    senders = {link[0]: [str(link[1]), link[2]] for link in template["links"]}
    graph: Graph = {}
    for node in template["nodes"]:
        if node["type"] in ("MarkdownNote", "PreviewAny"):
            continue
        described = stock(node["type"]).INPUT_TYPES()
        named = {**described.get("required", {}), **described.get("optional", {})}
        widgets = [name for name, spec in named.items() if isinstance(spec[0], list) or spec[0] in WIDGETS]
        values = [value for value in node["widgets_values"] if value not in NOT_SENT]
        assert len(values) == len(widgets), (node["type"], widgets, values)
        inputs = dict(zip(widgets, values, strict=True))
        inputs |= {socket["name"]: senders[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def find(graph: Graph, kind: str) -> str:
    (found,) = [key for key, node in graph.items() if node["class_type"] == kind]
    return found


def outputs_of(node: str, graph: Graph, stock: Any, done: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The outputs of a node; ``done`` holds stand-ins for the outputs of others."""
    if node not in done:
        inputs = {
            name: outputs_of(value[0], graph, stock, done)[value[1]] if isinstance(value, list) else value
            for name, value in graph[node]["inputs"].items()
        }
        with torch.inference_mode():
            done[node] = run_node(stock(graph[node]["class_type"]), **inputs)
    return done[node]


@pytest.fixture(scope="module")
def load(host, pack):
    return lambda name: api_form(json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")), host.stock)


def stages_of(graph: Graph) -> list[dict[str, str]]:
    """Node ids of the stock recipe's stages, in order, each by what it does."""
    stages = []
    for sampler in (key for key, node in graph.items() if node["class_type"] == "SamplerCustomAdvanced"):
        inputs = {name: value[0] for name, value in graph[sampler]["inputs"].items()}
        decoder = next(key for key, node in graph.items() if node["inputs"].get("samples") == [sampler, 0])
        scale = graph[inputs["latent_image"]]["inputs"]["pixels"][0]
        stages.append({**inputs, "sampler": sampler, "decoder": decoder, "scale": scale})
    return stages


def test_the_recipe_is_the_published_one(load):
    graph = load(STOCK)
    first, second = stages_of(graph)
    scheduler = graph[first["sigmas"]]["inputs"]
    assert (scheduler["scheduler"], scheduler["steps"], scheduler["denoise"]) == ("simple", 14, 0.7)
    shift = graph[find(graph, "ModelSamplingAuraFlow")]
    assert shift["inputs"]["shift"] == 3.0 and scheduler["model"] == [find(graph, "ModelSamplingAuraFlow"), 0]
    assert shift["inputs"]["model"] == [find(graph, "CLEARAttention"), 0]
    assert graph[second["scale"]]["inputs"]["image"] == [first["decoder"], 0]
    # No node of ours but the windows.
    assert [node["class_type"] for node in graph.values() if node["class_type"].startswith("CLEAR")] == [
        "CLEARAttention"
    ]


def test_the_recipe_gives_what_our_node_gives(host, load, tiny_flux, clear_node):
    """The template's own nodes from the first enlargement to the last sampler, behind a small model and picture."""
    write_vae_files(host.base / "models" / "vae_approx")
    (vae,) = run_node(host.stock("VAELoader"), vae_name=VAE_NAME)
    generator = torch.Generator().manual_seed(2)
    positive = conditioning(torch.randn(1, 7, 64, generator=generator), torch.randn(1, 32, generator=generator))
    model, image = clear_node(tiny_flux(), radius=3), picture(48, 64)
    graph = load(STOCK)
    done = {
        find(graph, "CLEARAttention"): (model,),
        find(graph, "VAELoader"): (vae,),
        find(graph, "FluxGuidance"): (positive,),
    }
    first, second = stages_of(graph)
    done[graph[first["scale"]]["inputs"]["image"][0]] = (image,)
    for stage in (first, second):
        out = outputs_of(stage["sampler"], graph, host.stock, done)[0]["samples"]
        scheduler, noise = (graph[stage[name]]["inputs"] for name in ("sigmas", "noise"))
        with torch.inference_mode():
            _, latent, _ = run_node(
                host.stock("CLEARUpscale"),
                image=image,
                model=model,
                positive=positive,
                vae=vae,
                upscale_by=graph[stage["scale"]]["inputs"]["scale_by"],
                seed=noise["noise_seed"],
                steps=scheduler["steps"],
                denoise=scheduler["denoise"],
            )
        assert torch.equal(out, latent["samples"])
        (image,) = outputs_of(stage["decoder"], graph, host.stock, done)


def test_the_papers_values_are_where_they_belong(load):
    graph = load(PAPER)
    widgets = graph[find(graph, "CLEARUpscale")]["inputs"]
    assert (widgets["steps"], widgets["denoise"], widgets["stage_denoise"], widgets["shift"]) == (14, 0.7, "", 0.0)
    assert graph[find(graph, "FluxGuidance")]["inputs"]["guidance"] == 7.5
    assert graph[find(graph, "CLEARAttention")]["inputs"]["weights_name"] == "clear_local_8_down_4.safetensors"


def test_our_nodes_template_has_its_widgets_where_they_belong(load):
    graph = load(NODE)
    widgets = graph[find(graph, "CLEARUpscale")]["inputs"]
    assert widgets["upscale_by"] == 3.0 and widgets["steps"] == 14 and widgets["stage_denoise"] == "0.7, 0.5"
    assert widgets["color_fix"] == "none" and widgets["shift"] == 0.0 and widgets["tile_overlap"] == 128
    assert widgets["model"] == [find(graph, "CLEARAttention"), 0]
