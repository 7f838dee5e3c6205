"""Our example workflows in ComfyUI's real front end: every node is there, every value where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from support_comfy.boot import PACK_FOLDER, PROJECT

WORKFLOWS = sorted((PROJECT / "example_workflows").glob("*.json"))

# Nodes of the front end itself; the server knows nothing of them and they do not run.
DISPLAY_ONLY = {"MarkdownNote", "Note"}

# What the front end adds to a seed as a widget of its own; it is saved but not sent.
SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize")

GRAPH_STATE = """() => (app.graph.nodes ?? app.graph._nodes).map(node => ({
    id: String(node.id), type: node.type, errors: !!node.has_errors,
    known: node.type in LiteGraph.registered_node_types,
    widgets: (node.widgets ?? []).map(widget => widget.name),
    box: [...node.pos, ...node.size],
}))"""


def saved_values(node: dict[str, Any]) -> list[Any]:
    """The widget values of a saved node that are sent to the server, in order."""
    return [value for value in node.get("widgets_values", []) if value not in SEED_CONTROLS]


def sent_values(node: dict[str, Any]) -> list[Any]:
    """The widget values in a node of API form, in order; links left out."""
    return [value for value in node["inputs"].values() if not isinstance(value, list)]


def test_it_loads_without_a_missing_node_or_a_complaint(tab, workflow, tmp_path):
    tab.load(workflow)
    tab.page.screenshot(path=tmp_path / "graph.png")
    nodes = tab.page.evaluate(GRAPH_STATE)
    assert {node["id"]: node["type"] for node in nodes} == {str(node["id"]): node["type"] for node in workflow["nodes"]}
    assert [node["type"] for node in nodes if node["errors"] or not node["known"]] == []
    assert tab.alerts() == []
    assert tab.about_us() == []


def test_every_value_arrives_and_the_server_takes_it(tab, workflow, server):
    tab.load(workflow)
    sent = tab.page.evaluate("async () => (await app.graphToPrompt()).output")
    running = {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in DISPLAY_ONLY}
    assert sent.keys() == running.keys()
    for key, node in running.items():
        assert sent[key]["class_type"] == node["type"]
        assert sent_values(sent[key]) == saved_values(node), node["type"]
    assert server.post("/prompt", {"prompt": sent})["node_errors"] == {}


def test_nodes_do_not_cover_each_other(tab, workflow):
    """Measured after the front end has given every node the size it needs there."""
    tab.load(workflow)
    boxes = [(node["type"], node["box"]) for node in tab.page.evaluate(GRAPH_STATE)]
    title = 30  # a node's title bar lies above its position
    for i, (first, (x, y, w, h)) in enumerate(boxes):
        for second, (a, b, c, d) in boxes[i + 1:]:
            apart = x + w <= a or a + c <= x or y + h <= b - title or b + d <= y - title
            assert apart, f"{first} and {second} overlap"


def test_the_page_of_our_node_is_served(server):
    with urlopen(f"{server.url}/extensions/{PACK_FOLDER}/docs/CLEARAttention.md", timeout=30) as page:
        text = page.read().decode()
    info = server.get("/object_info/CLEARAttention")["CLEARAttention"]
    assert [name for name in info["input_order"]["optional"] if f"`{name}`" not in text] == []


def test_workflows_point_to_the_pack():
    """Without it a shared workflow cannot say where its nodes come from."""
    assert WORKFLOWS
    for path in WORKFLOWS:
        ours = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
                if node["type"].startswith("CLEAR")]
        assert ours
        assert all(node["properties"]["cnr_id"] == "clear-flux" and node["properties"]["ver"] for node in ours)
