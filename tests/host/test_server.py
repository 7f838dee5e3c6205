"""The pack in a real server: a workflow in API form over HTTP, the server's log, and rejected workflows."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.host.support_comfy import boot
from tests.host.support_comfy.graph_inputs import CLEAR_WIDGETS
from tests.host.support_comfy.sampling import Graph, relative_error, run_graph
from tests.host.support_comfy.server import TEST_NODE, RefusedPromptError, Server, error_message, output_files

FIRST_WIDGETS = {"weights_name", "radius", "ntk_factor", "proportional_attention", "backend", "down_factor"}

CLEAR, SAMPLER, SAVE = "2", "6", "7"

WORKFLOW: Graph = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    CLEAR: {
        "class_type": "CLEARAttention",
        "inputs": {
            "model": ["1", 0],
            "weights_name": "tiny/clear_local_4_down_2.safetensors",
            "radius": 0,
            "ntk_factor": 10.0,
            "proportional_attention": "on",
            "backend": "auto",
            "down_factor": 0,
        },
    },
    "3": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 24, "guidance": 3.5}},
    "4": {"class_type": "ClearTestConditioning", "inputs": {"seed": 2, "tokens": 24, "guidance": 3.5}},
    "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 336, "height": 208, "batch_size": 1}},
    SAMPLER: {
        "class_type": "KSampler",
        "inputs": {
            "model": [CLEAR, 0],
            "positive": ["3", 0],
            "negative": ["4", 0],
            "latent_image": ["5", 0],
            "seed": 7,
            "steps": 2,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": "latents/clear"}},
}


def with_widgets(**values: Any) -> Graph:
    """The workflow with some widgets of our node set otherwise."""
    graph = copy.deepcopy(WORKFLOW)
    graph[CLEAR]["inputs"].update(values)
    return graph


def without_the_node() -> Graph:
    """The workflow with the loader's model going straight into the sampler."""
    graph = copy.deepcopy(WORKFLOW)
    graph[SAMPLER]["inputs"]["model"] = graph.pop(CLEAR)["inputs"]["model"]
    return graph


@pytest.fixture
def in_process(host, pack):
    """``in_process(graph)`` is the latent that the same workflow gives in this process."""
    if "ClearTestConditioning" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(TEST_NODE)
    return lambda graph: run_graph(graph, host.stock, SAMPLER)[0]["samples"]


def test_workflow_over_http_equals_the_same_nodes_in_process(running_server, in_process):
    (saved,) = output_files(running_server.run(WORKFLOW), running_server.base)
    latent = load_file(saved)["latent_tensor"]
    expected = in_process(WORKFLOW)
    assert latent.shape == (1, 16, 26, 42)
    assert torch.equal(latent, expected), f"relative difference {relative_error(latent, expected):.1e}"


def test_the_node_makes_the_difference_in_that_workflow(in_process):
    assert relative_error(in_process(without_the_node()), in_process(WORKFLOW)) > 1e-2


def test_widgets_are_optional_and_in_the_published_order(running_server):
    info = running_server.get("/object_info/CLEARAttention")["CLEARAttention"]
    order = info["input_order"]
    assert order["required"] == ["model"]
    assert set(order["optional"]) >= FIRST_WIDGETS
    assert order["optional"] == [name for name in CLEAR_WIDGETS if name in order["optional"]]
    assert list(info["input"]["optional"]) == order["optional"]
    assert info["output"] == ["MODEL"]
    assert info["display_name"] == "CLEAR Attention (hi-res)"
    assert info["category"] == "model/patch"


def test_the_list_of_weights_holds_what_is_installed(running_server):
    info = running_server.get("/object_info/CLEARAttention")["CLEARAttention"]
    kind, extra = info["input"]["optional"]["weights_name"]
    options = kind if isinstance(kind, list) else extra["options"]
    assert options[0] == "none"
    assert {Path(name).name for name in options[1:]} == {
        path.name for path in (running_server.base / "models" / "clear").rglob("*.safetensors")
    }


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        pytest.param({"weights_name": "clear_local_99.safetensors"}, ["clear_local_99.safetensors"], id="missing file"),
        pytest.param({"weights_name": 7}, ["'7'", "not installed"], id="a number as a name"),
        pytest.param({"weights_name": "x" * 100_000}, ["xxx", "not installed"], id="a name of 100 kB"),
        pytest.param({"backend": "warp"}, ["backend", "warp"], id="unknown backend"),
        pytest.param({"proportional_attention": "maybe"}, ["proportional_attention", "maybe"], id="unknown choice"),
        pytest.param({"radius": -3}, ["radius", "-3"], id="negative radius"),
        pytest.param({"radius": "wide"}, ["radius", "wide"], id="radius is a word"),
    ],
)
def test_unknown_values_are_refused_in_words(running_server, widgets, words):
    with pytest.raises(RefusedPromptError) as refused:
        running_server.run(with_widgets(**widgets))
    errors = refused.value.errors["node_errors"][CLEAR]["errors"]
    told = " ".join(f"{error['message']} {error['details']}" for error in errors)
    assert all(word in told for word in words) and len(told) < 1000, told


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        pytest.param({"weights_name": "clear_local_8.safetensors"}, ["64", "256"], id="weights of another width"),
        pytest.param({"down_factor": 4}, ["4", "2", "down"], id="down factor against the file"),
    ],
)
def test_what_does_not_fit_ends_in_one_sentence_and_the_server_goes_on(running_server, widgets, words):
    failed = running_server.run(with_widgets(**widgets))
    told = error_message(failed)
    assert told and "\n" not in told and all(word in told for word in words), told
    output_files(running_server.run(WORKFLOW), running_server.base)


def complaints(log: str) -> set[str]:
    """Lines of a server's log at level WARNING, without numbers, paths and progress bars."""
    lines = (re.sub(r"\S*[/\\]\S*|\d+", "#", line.split("\r")[-1]).strip() for line in log.splitlines())
    return {line for line in lines if line and "%|" not in line}


def test_the_pack_adds_no_warning_to_the_log(running_server, tmp_path):
    """A server with the pack that runs a workflow logs no warning that a server without the pack does not log."""
    already = len(running_server.log)
    output_files(running_server.run(WORKFLOW), running_server.base)
    with_pack = complaints(running_server.boot_log + running_server.log[already:])
    checkout, python = Path(sys.modules["nodes"].__file__).parent, Path(sys.executable)
    with Server(checkout, python, boot.make_base(tmp_path / "bare"), log_level="WARNING") as bare:
        assert with_pack - complaints(bare.boot_log) == set()


def test_inspects_page_survives_a_run_that_does_not_need_it(running_server, server_base):
    """The button that runs one output alone; without the page the node would be empty after a reload of the tab."""
    info = running_server.get("/object_info/CLEARInspect")["CLEARInspect"]
    if "has_intermediate_output" not in info:
        pytest.skip("this ComfyUI does not know has_intermediate_output")
    graph = {
        "1": WORKFLOW["1"],
        "2": {"class_type": "CLEARInspect", "inputs": {"model": ["1", 0], "upscale_by": 1.0}},
        "3": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "alone"}},
    }
    page = running_server.run(graph)["outputs"]["2"]
    graph["3"]["inputs"]["color"] = 255
    again = running_server.run(graph, partial_execution_targets=["4"])
    assert again["outputs"]["2"] == page
    assert page["images"]
