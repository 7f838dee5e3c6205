"""CLEARInspect in ComfyUI's real front end: run alone, its page and its text are on the node, and neither is saved."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.host.support_comfy.boot import PROJECT
from tools.suites import host_interpreter

GRAPH = """() => {
    app.graph.clear();
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        return node;
    };
    const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
    const loader = add("UNETLoader", 40, 80), clear = add("CLEARAttention", 40, 260);
    const picture = add("EmptyImage", 40, 640), inspect = add("CLEARInspect", 440, 80);
    set(loader, "unet_name", "tiny_flux.safetensors");
    set(clear, "radius", 8);
    set(picture, "width", 1024);
    set(picture, "height", 768);
    set(picture, "color", 0x88aacc);
    set(inspect, "upscale_by", 2);
    loader.connect(0, clear, 0);
    clear.connect(0, inspect, inspect.inputs.findIndex(input => input.name === "model"));
    picture.connect(0, inspect, inspect.inputs.findIndex(input => input.name === "image"));
    return inspect.id;
}"""

TEXT = """id => app.graph.getNodeById(id).widgets.find(widget => widget.name === "report").element
    .querySelector("textarea").value"""

STATE = """id => {
    const node = app.graph.getNodeById(id);
    return {images: (node.imgs ?? []).map(image => image.naturalWidth), size: [...node.size]};
}"""


TINY_FLUX = PROJECT / "tests" / "host" / "support_comfy" / "flux.py"

# Runs in the host's interpreter, which can build a model; `tests` is another package there, so it imports one file.
WRITE_MODEL = """
import sys
checkout, folder, file = sys.argv[1:]
sys.path[:0] = [checkout, folder]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import flux
flux.write_flux_file(file)
"""


@pytest.fixture
def tiny_model(checkout, server) -> None:
    """The small FLUX among the server's models."""
    file = server.base / "models" / "diffusion_models" / "tiny_flux.safetensors"
    if not file.exists():
        subprocess.run(
            [host_interpreter(checkout), "-c", WRITE_MODEL, str(checkout), str(TINY_FLUX.parent), str(file)],
            check=True,
            cwd=checkout,
        )


def run_and_wait(tab: Any, node: Any) -> str:
    tab.page.evaluate("() => app.queuePrompt(0)")
    tab.page.wait_for_function(f"id => ({TEXT})(id).includes('for bug reports')", arg=node, timeout=120_000)
    return tab.page.evaluate(TEXT, node)


def test_page_and_text_are_shown_on_the_node(tab, tiny_model, tmp_path, renderer):
    node = tab.page.evaluate(GRAPH)
    text = run_and_wait(tab, node)
    first = "Each part of the picture looks at a circle 256 px wide, and at a coarse overview of the rest."
    assert text.startswith(first)
    assert "size: 2048 x 1536 px" in text
    tab.page.wait_for_function(
        f"id => ({STATE})(id).images.length === 1 || document.querySelector('img[src*=temp]')", arg=node, timeout=30_000
    )
    tab.page.wait_for_timeout(1500)
    tab.page.screenshot(path=tmp_path / f"inspect_{renderer}.png")
    box = tab.page.get_by_placeholder("Run this node to see what the window does here.")
    assert box.is_visible() and box.input_value() == text
    assert box.bounding_box()["height"] >= 60
    assert tab.about_us() == []


def test_nothing_of_it_is_saved_or_sent(tab, tiny_model):
    node = tab.page.evaluate(GRAPH)
    run_and_wait(tab, node)
    saved = tab.page.evaluate("() => app.graph.serialize()")
    (ours,) = [each for each in saved["nodes"] if each["type"] == "CLEARInspect"]
    assert ours["widgets_values"] == [2]
    sent = tab.page.evaluate("async () => (await app.graphToPrompt()).output")[str(node)]["inputs"]
    assert set(sent) == {"model", "image", "upscale_by"}
    tab.load(saved)
    (again,) = [
        each for each in tab.page.evaluate("() => app.graph.serialize()")["nodes"] if each["type"] == "CLEARInspect"
    ]
    assert again["widgets_values"] == [2]


def test_copy_puts_the_text_into_the_clipboard(tab, tiny_model):
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    node = tab.page.evaluate(GRAPH)
    text = run_and_wait(tab, node)
    tab.page.get_by_role("button", name="Copy", exact=True).last.click()
    assert tab.page.evaluate("() => navigator.clipboard.readText()") == text
