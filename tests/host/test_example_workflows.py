"""Our example workflows and our blueprint against a server's /object_info: the server knows everything in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.support_comfy.boot import PACK_FOLDER, PROJECT

EXAMPLES = sorted((PROJECT / "example_workflows").glob("*.json"))
BLUEPRINTS = sorted((PROJECT / "subgraphs").glob("*.json"))
GRAPHS = [*EXAMPLES, *BLUEPRINTS]

WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
CONTROL = {"fixed", "increment", "decrement", "randomize"}
BORDER = {-10, -20}
"""The two ends of a subgraph."""

Node = dict[str, Any]
Link = dict[str, Any]
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@pytest.fixture(scope="module")
def described(running_server) -> dict[str, Any]:
    return running_server.get("/object_info")


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def graph(request: pytest.FixtureRequest, host) -> dict[str, Any]:
    """Nodes and links of a workflow, or of what is in a blueprint; every link as a subgraph has it.

    Its nodes of ComfyUI say which version they need.
    """
    saved = json.loads(request.param.read_text(encoding="utf-8"))
    needed = [node["properties"]["ver"] for node in saved["nodes"] if node["properties"].get("cnr_id") == "comfy-core"]
    for version in needed:
        if version_of(version) > version_of(host.version):
            pytest.skip(f"{request.param.stem} needs ComfyUI {version}")
    if request.param in BLUEPRINTS:
        (definition,) = saved["definitions"]["subgraphs"]
        return definition
    return {**saved, "links": [dict(zip(LINK, link, strict=True)) for link in saved["links"]]}


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def running(graph: dict[str, Any]) -> Iterator[Node]:
    return (node for node in graph["nodes"] if node["type"] != "MarkdownNote")


def inputs_of(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name to (type, options) in the order in which the front end makes them."""
    sections = [info["input"].get(section, {}) for section in ("required", "optional")]
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for section in sections for name, spec in section.items()}


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind == "COMBO" or kind in WIDGETS


def test_every_node_is_there(graph, described):
    assert {node["type"] for node in running(graph)} <= described.keys()


def test_every_saved_value_is_one_that_its_widget_takes(graph, described):
    for node in running(graph):
        values = iter(node["widgets_values"])
        models = {model["name"] for model in node["properties"].get("models", [])}
        for name, (kind, options) in inputs_of(described[node["type"]]).items():
            if not is_widget(kind):
                continue
            value, where = next(values), f"{node['type']}.{name}"
            choices = kind if isinstance(kind, list) else options.get("options", [])
            if isinstance(kind, list) or kind == "COMBO":
                # A file is offered once it is installed; this server has none, and no picture.
                assert value in choices or value in models or options.get("image_upload"), f"{where} is {value}"
            else:
                assert isinstance(value, WIDGETS[kind]), f"{where} is {value!r}"
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], f"{where} is {value}"
            if options.get("control_after_generate"):
                assert next(values) in CONTROL, where
            if options.get("image_upload"):
                assert next(values) == "image", where
        assert list(values) == [], f"{node['type']} has values left over"


def test_every_link_goes_from_an_output_to_an_input_of_its_type(graph, described):
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        if link["origin_id"] not in BORDER:
            source = nodes[link["origin_id"]]
            types = described[source["type"]]["output"]
            assert types[link["origin_slot"]] == link["type"]
            assert link["id"] in source["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] not in BORDER:
            target = nodes[link["target_id"]]
            socket = target["inputs"][link["target_slot"]]
            kind, _ = inputs_of(described[target["type"]])[socket["name"]]
            assert ("COMBO" if isinstance(kind, list) else kind) in (link["type"], "*")
            assert socket["link"] == link["id"]
    used = [socket["link"] for node in graph["nodes"] for socket in node["inputs"] if socket["link"] is not None]
    assert sorted(used) == sorted(link["id"] for link in graph["links"] if link["target_id"] not in BORDER)


def test_every_required_socket_is_connected(graph, described):
    """But for those that the blueprint leaves to its user, which come over its border and are connected as well."""
    for node in running(graph):
        connected = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        required = described[node["type"]]["input"].get("required", {})
        sockets = {name for name, spec in required.items() if not is_widget(spec[0])}
        assert sockets <= connected, node["type"]


def test_both_folders_are_served(running_server):
    assert set(running_server.get("/workflow_templates")[PACK_FOLDER]) == {path.stem for path in EXAMPLES}
    offered = running_server.get("/global_subgraphs")
    ours = {key: entry for key, entry in offered.items() if PACK_FOLDER in entry["info"]["node_pack"]}
    assert [entry["name"] for entry in ours.values()] == [path.stem for path in BLUEPRINTS]
    (key,) = ours
    assert json.loads(running_server.get(f"/global_subgraphs/{key}")["data"]) == json.loads(BLUEPRINTS[0].read_text())
