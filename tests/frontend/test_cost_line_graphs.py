"""The line of figures on our nodes: the sizes and models it finds in a graph, and graphs it cannot follow."""

from __future__ import annotations

import json

import pytest

from tests.host.support_comfy.boot import PROJECT
from tests.support.cost_line import BUILD, FOREIGN, NOTHING, PATIENCE, a_picture, clear_before, expect, line

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
    expect(tab, ids["upscale"], "the model's source is only known when it runs")
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
