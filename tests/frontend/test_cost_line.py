"""The line of figures on our nodes: it follows the graph, the figures are the server's, and nothing of it is saved.

Both of the front end's renderers, the canvas and the newer one of HTML elements, show it.
"""

from __future__ import annotations

import shutil

import pytest

from tests.host.support_comfy.boot import PROJECT
from tests.support.cost_line import BUILD, LINE, NOTHING, PATIENCE, SET, a_picture, clear_before, expect, line

SHOTS = PROJECT / "out" / "screenshots"

BYPASSED, MUTED, ALWAYS = 4, 2, 0

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
    """Kept under out/screenshots for people to look at; the contrast of text and background is measured."""
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
