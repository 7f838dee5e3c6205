"""Our nodes with mouse and keyboard: placed from the search, connected, edited, run, saved and opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.sampling import Graph
from tests.support.page_hands import connect, edit_widget, empty_canvas, place_from_search, run_to_the_end

NODES = {
    "CLEARAttention": "CLEAR Attention",
    "CLEARUpscale": "CLEAR Upscale",
    "CLEARInspect": "CLEAR Inspect",
    "CLEARGuide": "CLEAR Guide (low-resolution",
    "CLEARGuideAlign": "CLEAR Guide: align",
}
TINY = PROJECT / "demo" / "comfyui" / "tiny_flux_windows.json"

SAVED = "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"
SENT = "async () => (await app.graphToPrompt()).output"

# Widgets that the front end adds to an input: they are saved, but not sent.
BESIDE = {"seed": ["control_after_generate"]}


def widget_inputs(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name to (type, options) of the inputs that are widgets, in the order of the node."""
    described = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    pairs = {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in described.items()}
    return {
        name: pair
        for name, pair in pairs.items()
        if isinstance(pair[0], list) or pair[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    }


def another_value(name: str, kind: Any, options: dict[str, Any]) -> Any:
    """A valid value of a widget that is not its default."""
    choices = kind if isinstance(kind, list) else options.get("options", [])
    if choices:
        return next((choice for choice in choices if choice != options.get("default")), choices[0])
    default = options.get("default")
    if kind == "STRING":
        return {"dense_blocks": "d0-3", "stage_denoise": "0.6, 0.4", "guide_strength": "0, 1"}[name]
    if kind == "BOOLEAN":
        return not default
    step = options.get("step", 1)
    value = default + 2 * step if default + 2 * step <= options["max"] else default - 2 * step
    return round(value, 6) if kind == "FLOAT" else int(value)


def values(graph: Graph, node: Any, names: list[str]) -> dict[str, Any]:
    """The saved values of a node by name of its widget."""
    (found,) = [entry for entry in graph["nodes"] if str(entry["id"]) == str(node)]
    return dict(zip(names, found["widgets_values"], strict=True))


# Built as CLEARGuide is, which the fast set has.
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind == "CLEARGuideAlign" else ()) for kind in NODES]


@pytest.mark.parametrize("kind", KINDS)
def test_every_widget_can_be_edited_and_comes_back(tab, server, kind):
    empty_canvas(tab.page)
    node = place_from_search(tab.page, NODES[kind])
    info = server.get(f"/object_info/{kind}")[kind]
    widgets = widget_inputs(info)
    wanted = {name: another_value(name, *described) for name, described in widgets.items()}
    for name, value in wanted.items():
        edit_widget(tab.page, node, name, value)
    names = [given for name in widgets for given in (name, *BESIDE.get(name, []))]
    saved = tab.page.evaluate(SAVED)
    (entry,) = saved["nodes"]
    assert entry["type"] == kind
    found = values(saved, node, names)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert tab.page.evaluate(SENT)[str(node)]["inputs"] == pytest.approx(wanted)
    tab.load(saved)
    again = tab.page.evaluate(SAVED)
    assert again["nodes"] == saved["nodes"]
    assert tab.about_us() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_placed_node_says_which_pack_it_is_from(tab, server, kind):
    empty_canvas(tab.page)
    place_from_search(tab.page, NODES[kind])
    pack = server.get("/clear_flux/pack")
    (entry,) = tab.page.evaluate(SAVED)["nodes"]
    assert (entry["properties"]["cnr_id"], entry["properties"]["ver"]) == (pack["name"], pack["version"])


def test_nodes_of_others_are_left_alone(tab):
    empty_canvas(tab.page)
    place_from_search(tab.page, "Empty Latent Image")
    (entry,) = tab.page.evaluate(SAVED)["nodes"]
    assert "cnr_id" not in entry["properties"] or entry["properties"]["cnr_id"] == "comfy-core"


def test_a_saved_pack_and_version_stay(tab):
    """A graph from a newer version of the pack, or from a fork, keeps that version and name."""
    empty_canvas(tab.page)
    place_from_search(tab.page, NODES["CLEARAttention"])
    saved = tab.page.evaluate(SAVED)
    saved["nodes"][0]["properties"] |= {"cnr_id": "clear-flux-fork", "ver": "7.0.0"}
    tab.load(saved)
    properties = tab.page.evaluate(SAVED)["nodes"][0]["properties"]
    assert (properties["cnr_id"], properties["ver"]) == ("clear-flux-fork", "7.0.0")


def test_nodes_connect_with_the_mouse(tab):
    empty_canvas(tab.page)
    attention = place_from_search(tab.page, NODES["CLEARAttention"], (60, 120))
    upscale = place_from_search(tab.page, NODES["CLEARUpscale"], (1000, 120))
    connect(tab.page, attention, "MODEL", upscale, "model")
    (link,) = tab.page.evaluate(SAVED)["links"]
    assert list(map(str, (link[1], link[3], link[5]))) == [str(attention), str(upscale), "MODEL"]
    assert tab.page.evaluate(SENT)[str(upscale)]["inputs"]["model"] == [str(attention), 0]
    assert tab.about_us() == []


def tiny_workflow(steps: int | None = None) -> Graph:
    """The demo's graph on the test server's files; with few steps where only the way through counts."""
    text = TINY.read_text(encoding="utf-8")
    text = text.replace('"tiny_flux.safetensors"', '"demo/tiny_flux.safetensors"')
    graph = json.loads(text.replace('"tiny/clear_local', '"demo/clear_local'))
    for node in graph["nodes"]:
        if steps and node["type"] == "KSampler":
            node["widgets_values"][2] = steps
    return graph


@pytest.mark.parametrize("steps", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["one step", "as it is"])
def test_the_tiny_workflow_runs(tab, server, tmp_path, steps):
    tab.load(tiny_workflow(steps))
    assert tab.alerts() == []
    entry = run_to_the_end(tab.page, server, 400)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    (shown,) = [output["images"] for output in entry["outputs"].values() if "images" in output]
    assert Path(server.base / "output" / shown[0]["filename"]).stat().st_size > 100_000
    tab.page.wait_for_timeout(1000)
    tab.page.screenshot(path=tmp_path / "run.png")
    assert tab.about_us() == []


def test_the_tiny_workflow_is_saved_as_it_was(tab):
    tab.load(tiny_workflow())
    saved = tab.page.evaluate(SAVED)
    tab.load(saved)
    again = tab.page.evaluate(SAVED)
    assert again["nodes"] == saved["nodes"] and again["links"] == saved["links"]
    assert [node["widgets_values"] for node in saved["nodes"] if node["type"] == "CLEARAttention"] == [
        node["widgets_values"] for node in tiny_workflow()["nodes"] if node["type"] == "CLEARAttention"
    ]
