"""The line of figures on our nodes: the size is the graph's own, the figures are the server's, and nothing of it is saved.

Both of the front end's renderers, the canvas and the newer one of HTML elements, show it.
"""

from __future__ import annotations

import json
import shutil
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.host.support_comfy.boot import PROJECT

SHOTS = PROJECT / "out" / "screenshots"

# Builds a graph from {name: [type, {widget: value}, {input: [name, output]}]} and returns the ids by name.
BUILD = """nodes => {
    app.rootGraph.clear();
    const made = {};
    let x = 40;
    for (const [name, [type, values]] of Object.entries(nodes)) {
        const node = made[name] = LiteGraph.createNode(type);
        node.pos = [x, 120];
        x += 360;
        app.rootGraph.add(node);
        for (const [widget, value] of Object.entries(values))
            node.widgets.find(each => each.name === widget).value = value;
    }
    for (const [name, [, , links]] of Object.entries(nodes))
        for (const [input, [from, output]] of Object.entries(links ?? {}))
            made[from].connect(output, made[name], made[name].inputs.findIndex(slot => slot.name === input));
    return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]));
}"""

SET = """([id, name, value]) => { const widget = app.rootGraph.getNodeById(id).widgets.find(each => each.name === name);
    widget.value = value; widget.callback?.(value); }"""

LINE = """id => app.rootGraph.getNodeById(id).widgets.find(widget => widget.name === "cost").element.textContent"""

IS_LINE = """([id, text]) => app.rootGraph.getNodeById(id).widgets.find(widget => widget.name === "cost").element
    .textContent === text"""

NOTHING = {"weights_name": "none", "strength": 1, "radius": 0, "down_factor": 0}
PATIENCE = 20_000

BYPASSED, MUTED, ALWAYS = 4, 2, 0


def line(server: Any, **asked: Any) -> str:
    """What the server says to this question."""
    return server.get(f"/clear_flux/cost?{urlencode(asked)}")["line"]


def expect(tab: Any, node: Any, text: str) -> None:
    """Waits for a line, and shows the wrong one if it does not come."""
    try:
        tab.page.wait_for_function(IS_LINE, arg=[node, text], timeout=PATIENCE)
    except Exception:
        assert tab.page.evaluate(LINE, node) == text
        raise


SAMPLED = {
    "latent": ["EmptyLatentImage", {"width": 2048, "height": 1024}],
    "clear": ["CLEARAttention", {"radius": 8}],
    "sampler": ["KSampler", {}, {"model": ["clear", 0], "latent_image": ["latent", 0]}],
}


def test_the_line_follows_the_graph(tab, server, renderer):
    ids = tab.page.evaluate(BUILD, SAMPLED)
    asked = NOTHING | {"radius": 8}
    expect(tab, ids["clear"], line(server, **asked, width=2048, height=1024))
    shown = tab.page.locator(".clear-cost").first
    shown.wait_for(state="visible")
    box = shown.bounding_box()
    assert box["width"] > 100 and box["height"] > 10
    tab.page.evaluate(SET, [ids["latent"], "width", 4096])
    expect(tab, ids["clear"], line(server, **asked, width=4096, height=1024))
    tab.page.evaluate(SET, [ids["clear"], "radius", 32])
    asked["radius"] = 32
    expect(tab, ids["clear"], line(server, **asked, width=4096, height=1024))
    tab.page.evaluate("id => app.rootGraph.getNodeById(id).disconnectInput(3)", ids["sampler"])
    expect(tab, ids["clear"], line(server, **asked))
    for mode in (BYPASSED, MUTED):
        tab.page.evaluate("([id, mode]) => { app.rootGraph.getNodeById(id).mode = mode; }", [ids["clear"], mode])
        expect(tab, ids["clear"], "off")
    tab.page.evaluate("([id, mode]) => { app.rootGraph.getNodeById(id).mode = mode; }", [ids["clear"], ALWAYS])
    expect(tab, ids["clear"], line(server, **asked))
    assert tab.about_us() == []


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_pictures_of_the_nodes(tab, server, renderer, palette):
    """Kept under out/screenshots for a person to look at; that the text can be told from its ground is measured."""
    choose = "palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)"
    tab.page.evaluate(choose, palette)
    try:
        ids = tab.page.evaluate(
            BUILD,
            SAMPLED
            | {
                "picture": ["EmptyImage", {"width": 1024, "height": 1024}],
                "upscale": ["CLEARUpscale", {}, {"model": ["clear", 0]}],
            },
        )
        expect(tab, ids["clear"], line(server, **NOTHING | {"radius": 8}, width=2048, height=1024))
        tab.page.wait_for_timeout(1000)
        version = server.get("/system_stats")["system"]["comfyui_version"]
        SHOTS.mkdir(parents=True, exist_ok=True)
        tab.page.screenshot(path=SHOTS / f"nodes_{version}_{renderer}_{palette}.png")
        contrast = tab.page.evaluate("""() => {
            const style = getComputedStyle(document.querySelector(".clear-cost"));
            const light = color => {
                const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
                return 0.2126 * (r / 255) ** 2.2 + 0.7152 * (g / 255) ** 2.2 + 0.0722 * (b / 255) ** 2.2;
            };
            const [one, other] = [light(style.color), light(style.backgroundColor)];
            return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        }""")
        assert contrast > 4.5, "WCAG's bound for small text"
    finally:
        tab.page.evaluate(choose, "dark")


def clear_before(upscale: dict[str, Any], **nodes: Any) -> dict[str, Any]:
    """A graph in which CLEAR Attention feeds CLEAR Upscale."""
    return {
        "clear": ["CLEARAttention", {"radius": 16}],
        **nodes,
        "upscale": ["CLEARUpscale", upscale, {"model": ["clear", 0], "image": ["before", 0]}],
    }


def a_picture(*links: Any, **values: Any) -> list[Any]:
    return ["EmptyImage", {"width": 1000, "height": 800, **values}, *links]


SIZES = {
    "a made picture": (clear_before({"upscale_by": 2}, before=a_picture()), (2000, 1600)),
    "scaled by a factor": (
        clear_before(
            {"upscale_by": 4}, first=a_picture(), before=["ImageScaleBy", {"scale_by": 0.5}, {"image": ["first", 0]}]
        ),
        (2000, 1600),
    ),
    "scaled to a width": (
        clear_before(
            {"upscale_by": 1},
            first=a_picture(),
            before=["ImageScale", {"width": 3000, "height": 0}, {"image": ["first", 0]}],
        ),
        (3000, 2400),
    ),
    "through the VAE": (
        clear_before(
            {"upscale_by": 1},
            first=["EmptySD3LatentImage", {"width": 512, "height": 768}],
            second=["LatentUpscaleBy", {"scale_by": 2}, {"samples": ["first", 0]}],
            before=["VAEDecode", {}, {"samples": ["second", 0]}],
        ),
        (1024, 1536),
    ),
    "an upscale model": (
        clear_before(
            {"upscale_by": 2}, first=a_picture(), before=["ImageUpscaleWithModel", {}, {"image": ["first", 0]}]
        ),
        None,
    ),
    "a resize that may keep the proportions": (
        clear_before(
            {"upscale_by": 1},
            first=a_picture(),
            before=["ResizeAndPadImage", {"target_width": 640, "target_height": 640}, {"image": ["first", 0]}],
        ),
        None,
    ),
    "a node of another pack with a width": (
        clear_before(
            {"upscale_by": 1},
            first=a_picture(),
            before=["TestResize", {"width": 640, "height": 640}, {"image": ["first", 0]}],
        ),
        None,
    ),
    "a width from a primitive": (
        clear_before(
            {"upscale_by": 1}, number=["PrimitiveInt", {"value": 640}], before=a_picture({"width": ["number", 0]})
        ),
        (640, 800),
    ),
}


# Nodes of other packs: one that follows its source by its own means, and one that resizes by a rule of its own.
FOREIGN = """() => {
    class Get extends LiteGraph.LGraphNode {
        constructor(title) { super(title ?? "TestGet"); this.isVirtualNode = true; this.addOutput("MODEL", "MODEL"); }
    }
    class Resize extends LiteGraph.LGraphNode {
        constructor(title) {
            super(title ?? "TestResize");
            this.addInput("image", "IMAGE");
            this.addOutput("IMAGE", "IMAGE");
            this.addWidget("number", "width", 512, () => {});
            this.addWidget("number", "height", 512, () => {});
        }
    }
    LiteGraph.registerNodeType("TestGet", Get);
    LiteGraph.registerNodeType("TestResize", Resize);
}"""


@pytest.mark.parametrize("case", SIZES)
def test_the_size_is_found_where_it_can_be(tab, server, case):
    tab.page.evaluate(FOREIGN)
    graph, size = SIZES[case]
    ids = tab.page.evaluate(BUILD, graph)
    asked = NOTHING | {"radius": 16} | ({"width": size[0], "height": size[1]} if size else {})
    for node in ("upscale", "clear"):
        expect(tab, ids[node], line(server, **asked))
    assert tab.about_us() == []


def test_a_picture_that_was_uploaded_tells_its_size(tab, server):
    from PIL import Image

    Image.new("RGB", (320, 208)).save(server.base / "input" / "small picture.png")
    tab.page.reload()
    tab.page.wait_for_function(
        "() => window.app?.rootGraph && window.LiteGraph?.registered_node_types?.CLEARUpscale", timeout=90_000
    )
    ids = tab.page.evaluate(
        BUILD, clear_before({"upscale_by": 3}, before=["LoadImage", {"image": "small picture.png"}])
    )
    expect(tab, ids["upscale"], line(server, **NOTHING | {"radius": 16}, width=960, height=624))
    Image.new("RGB", (400, 400)).save(server.base / "input" / "small picture.png")
    tab.page.evaluate("() => app.refreshComboInNodes()")
    expect(tab, ids["upscale"], line(server, **NOTHING | {"radius": 16}, width=1200, height=1200))


def test_dense_models_and_bypassed_windows_are_named(tab, server):
    graph = clear_before({"upscale_by": 2}, before=a_picture(width=2048, height=2048))
    graph["clear"].append({"model": ["loader", 0]})
    ids = tab.page.evaluate(BUILD, {"loader": ["UNETLoader", {}], **graph})
    dense = line(server, windows="off", width=4096, height=4096)
    expect(tab, ids["upscale"], line(server, **NOTHING | {"radius": 16}, width=4096, height=4096))
    tab.page.evaluate("id => { app.rootGraph.getNodeById(id).mode = 4; }", ids["clear"])
    expect(tab, ids["upscale"], dense)
    tab.page.evaluate("id => app.rootGraph.getNodeById(id).disconnectInput(1)", ids["upscale"])
    expect(tab, ids["upscale"], "connect a model")


UNSEEN = {
    "an alias": {"from": ["TestGet", {}]},
    "a merge": {
        "one": ["UNETLoader", {}],
        "other": ["UNETLoader", {}],
        "from": ["ModelMergeSimple", {}, {"model1": ["one", 0], "model2": ["other", 0]}],
    },
    "a switch": {
        "one": ["UNETLoader", {}],
        "other": ["CLEARAttention", {}, {"model": ["one", 0]}],
        "from": ["ComfySwitchNode", {}, {"on_false": ["one", 0], "on_true": ["other", 0]}],
    },
}


@pytest.mark.parametrize("case", UNSEEN)
def test_nothing_is_claimed_of_a_model_that_only_the_run_can_follow(tab, case):
    tab.page.evaluate(FOREIGN)
    ids = tab.page.evaluate(
        BUILD,
        UNSEEN[case]
        | {"before": a_picture(), "upscale": ["CLEARUpscale", {}, {"model": ["from", 0], "image": ["before", 0]}]},
    )
    expect(tab, ids["upscale"], "where the model comes from is only known when it runs")
    assert tab.about_us() == []


def test_values_that_a_subgraph_shows_outside_are_found(tab, server):
    """Our blueprint's weights and factor are widgets of the subgraph."""
    blueprint = json.loads((PROJECT / "subgraphs" / "Upscale image, FLUX + CLEAR.json").read_text(encoding="utf-8"))
    tab.load(blueprint)
    lines = """() => [...app.rootGraph.subgraphs.values()].flatMap(graph => graph.nodes.flatMap(node =>
        node.widgets?.filter(widget => widget.name === "cost").map(widget => widget.element.textContent) ?? []))"""
    tab.page.wait_for_function(
        f"() => {{ const all = ({lines})(); return all.length === 2 && all.every(Boolean); }}", timeout=PATIENCE
    )
    tab.page.wait_for_timeout(1000)
    assert not any("only known when it runs" in text for text in tab.page.evaluate(lines)), tab.page.evaluate(lines)
    assert tab.about_us() == []


def test_a_part_of_the_sampling_is_named(tab, server):
    ids = tab.page.evaluate(BUILD, {"clear": ["CLEARAttention", {"radius": 8, "start_percent": 0.25}]})
    expect(tab, ids["clear"], line(server, **NOTHING | {"radius": 8}, start_percent=0.25))
    assert "from 25 % to 100 %" in tab.page.evaluate(LINE, ids["clear"])


def test_a_file_that_came_by_hand_is_seen_after_a_refresh(tab, server):
    ids = tab.page.evaluate(BUILD, {"clear": ["CLEARAttention", {"weights_name": "by_hand.safetensors", "radius": 8}]})
    tab.page.wait_for_function(f"id => ({LINE})(id).includes('is not installed')", arg=ids["clear"], timeout=PATIENCE)
    file = server.base / "models" / "clear" / "by_hand.safetensors"
    shutil.copy(PROJECT / "demo" / "tiny_flux" / "windows" / "clear_local_8.safetensors", file)
    try:
        tab.page.evaluate("() => app.refreshComboInNodes()")
        tab.page.wait_for_function(
            f"id => ({LINE})(id).includes('of dense attention')", arg=ids["clear"], timeout=PATIENCE
        )
    finally:
        file.unlink()


def test_weights_that_are_missing_are_named(tab):
    ids = tab.page.evaluate(BUILD, {"clear": ["CLEARAttention", {"weights_name": "mine.safetensors"}]})
    tab.page.wait_for_function(
        f"id => ({LINE})(id).includes('mine.safetensors is not installed')", arg=ids["clear"], timeout=PATIENCE
    )
    assert tab.about_us() == []


def test_nothing_of_it_is_saved_or_sent(tab, server, renderer):
    ids = tab.page.evaluate(BUILD, clear_before({"upscale_by": 2, "seed": 7}, before=a_picture()))
    tab.page.wait_for_function(f"id => ({LINE})(id) !== ''", arg=ids["upscale"], timeout=PATIENCE)
    saved = tab.page.evaluate("() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))")
    text, line = str(saved["nodes"]), tab.page.evaluate(LINE, ids["upscale"])
    assert line not in text and "clear_cost" not in text
    for kind, beside in (("CLEARAttention", 0), ("CLEARUpscale", 1)):  # the seed's control
        (node,) = [node for node in saved["nodes"] if node["type"] == kind]
        inputs = server.get(f"/object_info/{kind}")[kind]["input"]
        widgets = [
            name
            for part in inputs.values()
            for name, spec in part.items()
            if isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "COMBO")
        ]
        assert len(node["widgets_values"]) == len(widgets) + beside
    sent = tab.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert not any("cost" in node["inputs"] for node in sent.values())
    tab.load(saved)
    again = tab.page.evaluate("() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))")
    assert [node["widgets_values"] for node in again["nodes"] if "widgets_values" in node] == [
        node["widgets_values"] for node in saved["nodes"] if "widgets_values" in node
    ]


def test_a_graph_inside_a_subgraph(tab, server):
    """CLEAR Attention in the subgraph, the sampler and its latent outside."""
    ids = tab.page.evaluate(BUILD, SAMPLED | {"loader": ["UNETLoader", {}]})
    tab.page.evaluate(
        """([clear, loader]) => {
        const graph = app.rootGraph;
        graph.getNodeById(loader).connect(0, graph.getNodeById(clear), 0);
        graph.convertToSubgraph(new Set([graph.getNodeById(clear)]));
    }""",
        [ids["clear"], ids["loader"]],
    )
    expected = line(server, **NOTHING | {"radius": 8}, width=2048, height=1024)
    tab.page.wait_for_function(
        """text => [...app.rootGraph.subgraphs.values()].some(graph => graph.nodes.some(node =>
        node.widgets?.some(widget => widget.name === "cost" && widget.element.textContent === text)))""",
        arg=expected,
        timeout=PATIENCE,
    )
    assert tab.about_us() == []
