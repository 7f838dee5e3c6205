"""Graphs travel: saved by one version of the front end and opened by another, or saved when the pack had fewer widgets.

``tests/frontend/saved`` holds one graph as each version saved it; ``CLEAR_RECORD_GRAPHS=1`` writes the file of a
version that has none yet.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SAVED = Path(__file__).with_name("saved")
RECORDS = sorted(SAVED.glob("*.json"))

ATTENTION = {
    "weights_name": "demo/clear_local_8.safetensors",
    "strength": 0.4,
    "radius": 24,
    "ntk_factor": 4.5,
    "proportional_attention": "on",
    "start_percent": 0.1,
    "end_percent": 0.9,
    "dense_blocks": "0, d2-3, s35",
    "min_tokens": 5000,
    "controlnet": "off",
    "backend": "gather",
    "down_factor": 2,
    "ntk": "clipped",
}
UPSCALE = {
    "upscale_by": 3.0,
    "seed": 123456789,
    "control_after_generate": "fixed",
    "steps": 7,
    "cfg": 1.5,
    "sampler_name": "heun",
    "scheduler": "normal",
    "denoise": 0.35,
    "stages": 2,
    "stage_denoise": "0.6, 0.4",
    "tile_width": 1024,
    "tile_height": 768,
    "tile_overlap": 64,
    "color_fix": "wavelet",
    "shift": 1.25,
    "guide": "shift",
    "guide_strength": "0, 1.5",
    "vae_tile_size": 512,
}

BUILD = """([attention, upscale]) => {
    app.rootGraph.clear();
    const add = (type, x, values) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 100];
        app.rootGraph.add(node);
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value;
        return node;
    };
    const picture = add("EmptyImage", 60, {width: 640});
    const clear = add("CLEARAttention", 400, attention), large = add("CLEARUpscale", 800, upscale);
    const to = name => large.inputs.findIndex(input => input.name === name);
    clear.connect(0, large, to("model"));
    picture.connect(0, large, to("image"));
}"""

SERIALISE = "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"

STATE = """() => ({
    values: Object.fromEntries(app.rootGraph.nodes.map(node => [node.type, Object.fromEntries(node.widgets
        .filter(widget => widget.serialize !== false).map(widget => [widget.name, widget.value]))])),
    links: [...app.rootGraph.links.values()].map(link => [
        app.rootGraph.getNodeById(link.origin_id).type, link.origin_slot,
        app.rootGraph.getNodeById(link.target_id).type,
        app.rootGraph.getNodeById(link.target_id).inputs[link.target_slot].name]).sort(),
})"""

LINKS = [["CLEARAttention", 0, "CLEARUpscale", "model"], ["EmptyImage", 0, "CLEARUpscale", "image"]]


def version_of(server: Any) -> str:
    return server.get("/system_stats")["system"]["comfyui_version"]


def test_it_is_saved_as_recorded(tab, server):
    """The records must equal what these versions save."""
    file = SAVED / f"{version_of(server)}.json"
    tab.page.evaluate(BUILD, [ATTENTION, UPSCALE])
    saved = tab.page.evaluate(SERIALISE)
    if os.environ.get("CLEAR_RECORD_GRAPHS") and not file.exists():
        SAVED.mkdir(exist_ok=True)
        file.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    if not file.exists():
        pytest.skip(f"there is no record of ComfyUI {version_of(server)}; CLEAR_RECORD_GRAPHS=1 writes it")
    recorded = json.loads(file.read_text(encoding="utf-8"))
    for now, then in zip(saved["nodes"], recorded["nodes"], strict=True):
        assert (now["type"], now["widgets_values"]) == (then["type"], then["widgets_values"])
    assert [link[1:] for link in saved["links"]] == [link[1:] for link in recorded["links"]]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: f"saved by {path.stem}")
def test_it_opens_in_every_version(tab, server, record):
    tab.load(json.loads(record.read_text(encoding="utf-8")))
    assert tab.alerts() == []
    state = tab.page.evaluate(STATE)
    assert state["values"]["CLEARAttention"] == pytest.approx(ATTENTION)
    assert state["values"]["CLEARUpscale"] == pytest.approx(UPSCALE)
    assert state["links"] == LINKS
    sent = tab.page.evaluate("async () => (await app.graphToPrompt()).output")
    for kind, values in (("CLEARAttention", ATTENTION), ("CLEARUpscale", UPSCALE)):
        (node,) = [node for node in sent.values() if node["class_type"] == kind]
        plain = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        assert plain == pytest.approx({name: values[name] for name in values if name != "control_after_generate"})
    assert tab.about_us() == []


@pytest.mark.parametrize("kept", [0, 1, 3, 9])
def test_a_graph_of_an_older_pack_opens(tab, server, kept):
    """Fewer values than widgets: each saved value reaches its widget, the others keep their defaults."""
    assert RECORDS
    graph = json.loads(RECORDS[0].read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "CLEARAttention":
            node["widgets_values"] = node["widgets_values"][:kept]
            node.pop("widgets_values_named", None)
            node["inputs"] = node["inputs"][: 1 + kept] if len(node["inputs"]) > 1 else node["inputs"]
    tab.load(graph)
    info = server.get("/object_info/CLEARAttention")["CLEARAttention"]["input"]["optional"]
    defaults = {name: spec[1]["default"] for name, spec in info.items()}
    expected = defaults | dict(list(ATTENTION.items())[:kept])
    state = tab.page.evaluate(STATE)
    assert state["values"]["CLEARAttention"] == pytest.approx(expected)
    assert state["links"] == LINKS
    assert tab.alerts() == [] and tab.about_us() == []
