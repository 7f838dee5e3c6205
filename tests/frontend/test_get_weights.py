"""The "Get weights" button in ComfyUI's real front end: it fetches only the chosen file, and is never saved."""

from __future__ import annotations

from typing import Any

import pytest

BUTTON = "Get weights"

ADD_NODE = """values => {
    const node = LiteGraph.createNode("CLEARAttention");
    node.pos = [300, 200];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values))
        node.widgets.find(widget => widget.name === name).value = value;
    return node.id;
}"""

PRESS = """id => app.graph.getNodeById(id).widgets.find(widget => widget.name === "Get weights").callback()"""


def add_node(tab: Any, **values: Any) -> Any:
    """A CLEAR node in the open graph; its id."""
    return tab.page.evaluate(ADD_NODE, values)


def open_dialog(tab: Any, node: Any) -> Any:
    tab.page.evaluate(PRESS, node)
    dialog = tab.page.locator("dialog.clear-weights")
    dialog.wait_for(state="visible")
    return dialog


def test_the_button_is_on_the_node_and_neither_saved_nor_sent(tab, server):
    node = add_node(tab, radius=8)
    widgets = tab.page.evaluate("id => app.graph.getNodeById(id).widgets.map(widget => widget.name)", node)
    names = list(server.get("/object_info/CLEARAttention")["CLEARAttention"]["input"]["optional"])
    assert widgets == [*names, BUTTON, "cost"]
    saved = tab.page.evaluate("() => app.graph.serialize()")["nodes"][-1]["widgets_values"]
    values = tab.page.evaluate("id => app.graph.getNodeById(id).widgets.map(widget => widget.value)", node)
    assert saved == values[: len(names)]
    sent = tab.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert BUTTON not in sent[str(node)]["inputs"]
    assert tab.about_us() == []


def test_a_saved_graph_comes_back_with_its_values(tab):
    add_node(tab, radius=24, strength=0.4, backend="gather")
    saved = tab.page.evaluate("() => app.graph.serialize()")
    tab.load(saved)
    again = tab.page.evaluate("() => app.graph.serialize()")
    (values,), (before,) = (
        [node["widgets_values"] for node in graph["nodes"] if node["type"] == "CLEARAttention"]
        for graph in (again, saved)
    )
    assert values == before


def test_the_dialog_lists_the_catalogue(tab, server, tmp_path):
    dialog = open_dialog(tab, add_node(tab))
    tab.page.screenshot(path=tmp_path / "dialog.png")
    files = server.get("/clear_flux/weights")["files"]
    assert dialog.locator("tr").count() == len(files) == 5
    text = dialog.inner_text()
    assert all(file["name"] in text for file in files) and "Non-Commercial" in text
    dialog.get_by_role("button", name="Close").click()
    assert tab.page.locator("dialog.clear-weights").count() == 0
    assert tab.about_us() == []


def test_a_refused_download_says_why_and_can_be_tried_again(tab, tmp_path):
    """The server of these tests runs in huggingface_hub's offline mode."""
    dialog = open_dialog(tab, add_node(tab))
    row = dialog.locator("tr").filter(has_text="clear_local_32")
    row.get_by_role("button", name="Get").click()
    error = row.locator(".error")
    error.wait_for(timeout=60_000)
    tab.page.screenshot(path=tmp_path / "refused.png")
    assert "HF_HUB_OFFLINE" in error.inner_text()
    assert row.get_by_role("button", name="Try again").is_visible()


LAST_MESSAGE = """async detail => {
    const { api } = await import("/scripts/api.js");
    api.dispatchEvent(new CustomEvent("clear_flux.weights", { detail: { name: "clear_local_32", ...detail } }));
}"""


def test_a_download_that_fails_later_is_told_without_the_dialog(tab):
    open_dialog(tab, add_node(tab)).get_by_role("button", name="Close").click()
    tab.page.evaluate(LAST_MESSAGE, {"error": "The disk is full."})
    tab.page.get_by_text("The disk is full.").first.wait_for()  # newer front ends also read messages out to the blind


def test_a_server_that_is_gone_is_told_and_asked_again(tab):
    node = add_node(tab)
    row = open_dialog(tab, node).locator("tr").filter(has_text="clear_local_32")
    tab.page.route("**/clear_flux/weights", lambda route: route.abort())
    row.get_by_role("button", name="Get").click()
    row.get_by_role("button", name="Try again").wait_for()
    assert "ComfyUI does not answer" in row.locator(".error").inner_text()
    tab.page.get_by_role("button", name="Close").last.click()
    tab.page.evaluate(PRESS, node)
    tab.page.get_by_text("ComfyUI does not answer").last.wait_for()
    assert tab.page.locator("dialog.clear-weights").count() == 0


def test_a_download_that_others_asked_for_chooses_nothing(tab, server):
    """The server tells every tab; this one only looked."""
    node = add_node(tab)
    open_dialog(tab, node)
    tab.page.evaluate(LAST_MESSAGE, {"installed": "clear_local_32.safetensors"})
    tab.page.locator("tr").filter(has_text="clear_local_32").get_by_text("installed").wait_for()
    tab.page.wait_for_timeout(1000)
    assert (
        tab.page.evaluate(
            """id => app.graph.getNodeById(id).widgets.find(
        widget => widget.name === "weights_name").value""",
            node,
        )
        == "none"
    )


@pytest.mark.parametrize("is_open", [True, False], ids=["dialog open", "dialog closed"])
def test_what_was_fetched_goes_into_the_node(tab, server, is_open):
    """The last message of a download, as the server sends it."""
    file = server.base / "models" / "clear" / "clear_local_32.safetensors"
    node, other = add_node(tab), add_node(tab, weights_name="mine.safetensors")
    tab.page.route(
        "**/clear_flux/weights",
        lambda route: (
            route.fulfill(status=202, json={"fetching": "clear_local_32"})
            if route.request.method == "POST"
            else route.continue_()
        ),
    )
    dialog = open_dialog(tab, node)
    dialog.locator("tr").filter(has_text="clear_local_32").get_by_role("button", name="Get").click()
    if not is_open:
        dialog.get_by_role("button", name="Close").click()
    file.touch()
    try:
        tab.page.evaluate(LAST_MESSAGE, {"installed": "clear_local_32.safetensors"})
        tab.page.wait_for_function(
            """id => app.graph.getNodeById(id).widgets.find(
            widget => widget.name === "weights_name").value === "clear_local_32.safetensors" """,
            arg=node,
        )
        assert (
            tab.page.evaluate(
                """id => app.graph.getNodeById(id).widgets.find(
            widget => widget.name === "weights_name").value""",
                other,
            )
            == "mine.safetensors"
        )
        options = tab.page.evaluate(
            """id => app.graph.getNodeById(id).widgets.find(
            widget => widget.name === "weights_name").options.values""",
            node,
        )
        assert "clear_local_32.safetensors" in options
    finally:
        file.unlink()
