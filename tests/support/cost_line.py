"""Graphs and queries for the line of figures on our nodes in the front end."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

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


def line(server: Any, **asked: Any) -> str:
    """The server's line for this query."""
    return server.get(f"/clear_flux/cost?{urlencode(asked)}")["line"]


def expect(tab: Any, node: Any, text: str) -> None:
    """Waits for a line; fails with the line shown if it does not appear."""
    try:
        tab.page.wait_for_function(IS_LINE, arg=[node, text], timeout=PATIENCE)
    except Exception:
        assert tab.page.evaluate(LINE, node) == text
        raise


def clear_before(upscale: dict[str, Any], **nodes: Any) -> dict[str, Any]:
    """A graph in which CLEAR Attention feeds CLEAR Upscale."""
    return {
        "clear": ["CLEARAttention", {"radius": 16}],
        **nodes,
        "upscale": ["CLEARUpscale", upscale, {"model": ["clear", 0], "image": ["before", 0]}],
    }


def a_picture(*links: Any, **values: Any) -> list[Any]:
    return ["EmptyImage", {"width": 1000, "height": 800, **values}, *links]


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
