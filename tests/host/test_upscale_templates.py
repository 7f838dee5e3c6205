"""The templates: the recipe without our node is the recipe, and gives what our node gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support_comfy.pictures import VAE_NAME, picture, write_vae_files
from support_comfy.sampling import Graph, conditioning, run_node

TEMPLATES = Path(__file__).parents[2] / "example_workflows"
CONTROL = ("fixed", "increment", "decrement", "randomize")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def api_form(template: dict[str, Any], stock: Any) -> Graph:
    """A saved workflow as the front end sends it: links by socket, widget values by position."""
    senders = {link[0]: [str(link[1]), link[2]] for link in template["links"]}
    graph: Graph = {}
    for node in template["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        described = stock(node["type"]).INPUT_TYPES()
        named = {**described.get("required", {}), **described.get("optional", {})}
        widgets = [name for name, spec in named.items() if isinstance(spec[0], list) or spec[0] in WIDGETS]
        values = [value for value in node["widgets_values"] if value not in CONTROL]
        inputs = dict(zip(widgets, values))
        assert len(values) == len(widgets), (node["type"], widgets, values)
        inputs |= {socket["name"]: senders[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def find(graph: Graph, kind: str) -> str:
    (found,) = [key for key, node in graph.items() if node["class_type"] == kind]
    return found


def outputs_of(node: str, graph: Graph, stock: Any, done: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """What a node puts out, where ``done`` holds what stands in for others."""
    if node not in done:
        inputs = {name: outputs_of(value[0], graph, stock, done)[value[1]] if isinstance(value, list) else value
                  for name, value in graph[node]["inputs"].items()}
        with torch.inference_mode():
            done[node] = run_node(stock(graph[node]["class_type"]), **inputs)
    return done[node]


@pytest.fixture(scope="module")
def load(host, pack):
    return lambda name: api_form(json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")), host.stock)


def test_the_recipe_is_the_published_one(load):
    graph = load("clear_upscale_stock_nodes")
    scheduler = graph[find(graph, "BasicScheduler")]["inputs"]
    assert (scheduler["scheduler"], scheduler["steps"], scheduler["denoise"]) == ("simple", 14, 0.7)
    shift = graph[find(graph, "ModelSamplingAuraFlow")]
    assert shift["inputs"]["shift"] == 3.0 and scheduler["model"] == [find(graph, "ModelSamplingAuraFlow"), 0]
    assert shift["inputs"]["model"] == [find(graph, "CLEARAttention"), 0]
    # No node of ours but the windows.
    assert [node["class_type"] for node in graph.values() if node["class_type"].startswith("CLEAR")] == ["CLEARAttention"]


def test_the_recipe_gives_what_our_node_gives(host, load, tiny_flux, clear_node):
    """The template's own nodes from the enlargement to the sampler, with a small model and picture put in front."""
    write_vae_files(host.base / "models" / "vae_approx")
    (vae,) = run_node(host.stock("VAELoader"), vae_name=VAE_NAME)
    generator = torch.Generator().manual_seed(2)
    positive = conditioning(torch.randn(1, 7, 64, generator=generator), torch.randn(1, 32, generator=generator))
    model, image = clear_node(tiny_flux(), radius=3), picture(48, 64)
    graph = load("clear_upscale_stock_nodes")
    given = {find(graph, "CLEARAttention"): (model,), find(graph, "VAELoader"): (vae,),
             find(graph, "FluxGuidance"): (positive,)}
    scale = graph[find(graph, "ImageScaleBy")]["inputs"]
    given[scale["image"][0]] = (image,)
    sampler = find(graph, "SamplerCustomAdvanced")
    out = outputs_of(sampler, graph, host.stock, given)[0]["samples"]
    noise, _ = graph[sampler]["inputs"]["noise"]
    seed = graph[noise]["inputs"]["noise_seed"]
    with torch.inference_mode():
        _, latent, _ = run_node(host.stock("CLEARUpscale"), image=image, model=model, positive=positive, vae=vae,
                                upscale_by=2.0, seed=seed, steps=14, denoise=0.7)
    assert torch.equal(out, latent["samples"])


def test_our_nodes_template_has_its_widgets_where_they_belong(load):
    graph = load("clear_upscale")
    widgets = graph[find(graph, "CLEARUpscale")]["inputs"]
    assert widgets["upscale_by"] == 4.0 and widgets["steps"] == 14 and widgets["stage_denoise"] == "0.7, 0.5"
    assert widgets["color_fix"] == "none" and widgets["shift"] == 3.0 and widgets["tile_overlap"] == 128
    assert widgets["model"] == [find(graph, "CLEARAttention"), 0]
