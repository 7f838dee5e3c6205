"""Our example workflows and our blueprint in ComfyUI's real front end: complete, tidy, unchanged by saving, running."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.server import error_message
from tests.support.page_hands import empty_canvas, place_from_search
from tests.support.tiny_examples import PICTURE, SIZES, Prompt, tiny, write_controlnet, write_lora, write_picture

BLUEPRINT = "Upscale image, FLUX + CLEAR"

# Nodes of the front end alone: the server does not have them, and they do not run.
DISPLAY_ONLY = {"MarkdownNote", "Note"}

# What the front end adds to a seed or to an upload as a widget of its own; it is saved but not sent.
NOT_SENT = ("fixed", "increment", "decrement", "randomize", "image")

GRAPH_STATE = """() => (app.graph.nodes ?? app.graph._nodes).map(node => ({
    id: String(node.id), type: node.type, errors: !!node.has_errors,
    known: node.type in LiteGraph.registered_node_types,
    box: [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT,
          node.pos[0] + node.size[0], node.pos[1] + node.size[1]],
}))"""

DRAWN_BOXES = """() => [...document.querySelectorAll(".lg-node[data-node-id]")].map(node => {
    const box = node.getBoundingClientRect();
    return {id: node.dataset.nodeId, box: [box.left, box.top, box.right, box.bottom]};
})"""

SAVED = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
SENT = "async () => (await app.graphToPrompt()).output"
SET = "([name, value]) => app.extensionManager.setting.set(name, value)"

Graph = dict[str, Any]


@dataclass
class Seen:
    """An example after the front end has opened it.

    Attributes:
        state: Of every node.
        sent: What it would send to the server.
        saved, saved_again: What it saves, and what it saves after opening that.
        drawn: Boxes of the nodes in the newer renderer.
        alerts, complaints: What it showed over the graph, and what its console says of us.
    """

    workflow: Graph
    state: list[dict[str, Any]]
    sent: Prompt
    saved: Graph
    saved_again: Graph
    drawn: list[dict[str, Any]]
    alerts: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def stocked(server) -> Any:
    """The server with a picture and a ControlNet to load; before a page opens, which asks once what there is."""
    write_picture(server.base / "input" / "example.png")
    write_controlnet(server.base / "models" / "controlnet" / "demo" / "tiny_controlnet.safetensors")
    write_lora(server.base / "models" / "loras" / "demo" / "tiny_lora.safetensors")
    return server


@pytest.fixture(scope="module")
def seen(stocked, lasting_tab, workflow, tmp_path_factory) -> Seen:
    """An example, opened, saved, opened again, and photographed in light and dark and in both renderers.

    An app too is opened as the graph that it is; ``test_app_mode.py`` opens it as an app.
    """
    workflow = {**workflow, "extra": {**workflow["extra"], "linearMode": False}}
    tab, page = lasting_tab, lasting_tab.page
    before = len(tab.about_us())
    tab.load(workflow)
    state, sent, saved, alerts = (page.evaluate(GRAPH_STATE), page.evaluate(SENT), page.evaluate(SAVED), tab.alerts())
    shots = tmp_path_factory.mktemp("graphs")
    page.screenshot(path=shots / "dark.png")
    page.evaluate(SET, ["Comfy.ColorPalette", "light"])
    tab.load(saved)
    saved_again = page.evaluate(SAVED)
    page.screenshot(path=shots / "light.png")
    page.evaluate(SET, ["Comfy.VueNodes.Enabled", True])
    try:
        tab.load(workflow)
        page.wait_for_function(
            "count => document.querySelectorAll('.lg-node[data-node-id]').length >= count", arg=len(workflow["nodes"])
        )
        drawn = page.evaluate(DRAWN_BOXES)
        page.screenshot(path=shots / "newer_renderer.png")
    finally:
        page.evaluate(SET, ["Comfy.VueNodes.Enabled", False])
        page.evaluate(SET, ["Comfy.ColorPalette", "dark"])
        # Elements that are still there would give the next graph's nodes their sizes.
        page.wait_for_function("() => !document.querySelector('.lg-node[data-node-id]')")
    return Seen(workflow, state, sent, saved, saved_again, drawn, alerts, tab.about_us()[before:])


def saved_values(node: Graph) -> list[Any]:
    """The widget values of a saved node that are sent to the server, in order."""
    return [value for value in node.get("widgets_values", []) if value not in NOT_SENT]


def sent_values(node: Graph) -> list[Any]:
    """The widget values in a node of API form, in order; links left out."""
    return [value for value in node["inputs"].values() if not isinstance(value, list)]


def links_of(graph: Graph) -> set[tuple[Any, ...]]:
    """(from, output, to, name of the input); front ends number links and sockets as they like."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    return {
        (source, slot, target, nodes[target]["inputs"][at]["name"]) for _, source, slot, target, at, _ in graph["links"]
    }


def overlaps(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other, by id; each box is left, top, right, bottom."""
    return [
        (one["id"], other["id"])
        for one, other in itertools.combinations(boxes, 2)
        if one["box"][0] < other["box"][2]
        and other["box"][0] < one["box"][2]
        and one["box"][1] < other["box"][3]
        and other["box"][1] < one["box"][3]
    ]


def test_it_opens_without_a_missing_node_or_a_complaint(seen):
    assert {node["id"]: node["type"] for node in seen.state} == {
        str(node["id"]): node["type"] for node in seen.workflow["nodes"]
    }
    assert [node["type"] for node in seen.state if node["errors"] or not node["known"]] == []
    assert seen.alerts == [] and seen.complaints == []


def test_every_value_arrives(seen):
    running = {str(node["id"]): node for node in seen.workflow["nodes"] if node["type"] not in DISPLAY_ONLY}
    assert seen.sent.keys() == running.keys()
    for key, node in running.items():
        assert seen.sent[key]["class_type"] == node["type"]
        if node["type"] != "PreviewAny":  # what it shows is a widget, and sent as well by some front ends
            assert sent_values(seen.sent[key]) == saved_values(node), node["type"]


def test_saving_changes_nothing_that_was_set(seen):
    saved = {node["id"]: node for node in seen.saved["nodes"]}
    for node in seen.workflow["nodes"]:
        after = saved[node["id"]]
        assert (after["type"], after.get("title", ""), list(after["pos"])) == (
            node["type"],
            node.get("title", after.get("title", "")),
            node["pos"],
        )
        assert after.get("widgets_values", [])[: len(node["widgets_values"])] == node["widgets_values"], node["type"]
        assert after["properties"].items() >= node["properties"].items(), node["type"]
    assert links_of(seen.saved) == links_of(seen.workflow)
    assert [(group["title"], group["bounding"]) for group in seen.saved["groups"]] == [
        (group["title"], group["bounding"]) for group in seen.workflow["groups"]
    ]


def test_opening_what_was_saved_and_saving_again_gives_the_same(seen):
    """But for what is the front end's own: sizes, which it settles a moment later, and the widgets of PreviewAny."""

    def ours(graph: Graph) -> list[Graph]:
        return [
            {
                key: value
                for key, value in node.items()
                if key != "size" and (key, node["type"]) != ("widgets_values", "PreviewAny")
            }
            for node in graph["nodes"]
        ]

    assert ours(seen.saved_again) == ours(seen.saved)
    for part in ("links", "groups"):
        assert seen.saved_again[part] == seen.saved[part]


@pytest.mark.parametrize("renderer", ["canvas", "newer"])
def test_nodes_do_not_cover_each_other(seen, renderer):
    """Measured after the front end has given every node the size it needs there."""
    boxes = seen.state if renderer == "canvas" else seen.drawn
    assert len(boxes) == len(seen.workflow["nodes"])
    assert overlaps(boxes) == []


def saved_pictures(entry: dict[str, Any], base: Path) -> list[Path]:
    assert entry["status"]["status_str"] == "success", error_message(entry)
    return [
        base / "output" / image["subfolder"] / image["filename"]
        for shown in entry["outputs"].values()
        for image in shown.get("images", [])
        if image["type"] == "output"
    ]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_it_runs_to_the_end(seen, stocked, request):
    """As the front end sends it, but for small files and sizes."""
    name = request.node.callspec.params["workflow"].stem
    graph = tiny(seen.sent)
    # An app sends what its example sends; the server would keep the first one's pictures and save none.
    for node in graph.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = name
    pictures = saved_pictures(stocked.run(graph, seconds=500), stocked.base)
    assert [size_of(path) for path in pictures] == SIZES[name]


PLACED = """id => {
    const node = app.graph.getNodeById(id);
    return {title: node.title, inputs: node.inputs.map(input => input.name), outputs: node.outputs.map(o => o.name),
            widgets: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value]))};
}"""

AROUND = """id => {
    const load = LiteGraph.createNode("LoadImage"), save = LiteGraph.createNode("SaveImage");
    app.graph.add(load);
    app.graph.add(save);
    const node = app.graph.getNodeById(id);
    load.widgets[0].value = "example.png";
    load.connect(0, node, node.inputs.findIndex(input => input.name === "image"));
    node.connect(node.outputs.findIndex(output => output.name === "image"), save, 0);
    node.widgets.find(widget => widget.name === "upscale_by").value = 3;
}"""


def test_the_blueprint_is_found_placed_and_runs(tab, stocked, tmp_path):
    empty_canvas(tab.page)
    node = place_from_search(tab.page, BLUEPRINT.split(" +")[0])
    tab.page.screenshot(path=tmp_path / "blueprint.png")
    placed = tab.page.evaluate(PLACED, node)
    assert placed["title"] == BLUEPRINT
    assert placed["inputs"][:2] == ["image", "mask"] and placed["outputs"] == ["image", "info"]
    assert (
        placed["widgets"].items()
        >= {"denoise": 0.35, "upscale_by": 2, "guidance": 3.5, "weights_name": "clear_local_16.safetensors"}.items()
    )
    tab.page.evaluate(AROUND, node)
    sent = tab.page.evaluate(SENT)
    (upscale,) = [inner["inputs"] for inner in sent.values() if inner["class_type"] == "CLEARUpscale"]
    assert upscale["upscale_by"] == 3, "set on the outside"
    (picture,) = saved_pictures(stocked.run(tiny(sent), seconds=500), stocked.base)
    assert size_of(picture) == tuple(3 * side for side in PICTURE)
    assert tab.alerts() == [] and tab.about_us() == []


def test_workflows_and_blueprint_have_names_that_say_what_they_do():
    assert sorted(path.stem for path in (PROJECT / "example_workflows").glob("*.json")) == sorted(SIZES)
