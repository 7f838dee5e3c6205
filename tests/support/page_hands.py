"""Actions in ComfyUI's front end with mouse and keyboard, the same in every version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MIDDLE = (800, 450)
"""An empty place of the canvas in a page of 1600 x 900."""

SETTLE = 400
"""Milliseconds in which the front end does what it was told."""

PATIENCE = 20
"""How often something is tried before it counts as failed."""

CLEAR = """() => { app.rootGraph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0];
    app.canvas.draw(true, true); }"""

MOVE = """([id, x, y]) => { const node = app.rootGraph.getNodeById(id); node.pos = [x, y]; app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0]; app.canvas.draw(true, true); }"""

TYPING = "() => ['INPUT', 'TEXTAREA'].includes(document.activeElement?.tagName)"

NEWEST = "() => { const nodes = app.rootGraph.nodes; return nodes[nodes.length - 1]?.id; }"

SLOT = """([id, isInput, name]) => {
    const node = app.rootGraph.getNodeById(id);
    const index = (isInput ? node.inputs : node.outputs).findIndex(slot => slot.name === name);
    const [x, y] = node.getConnectionPos(isInput, index);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + (x + app.canvas.ds.offset[0]) * app.canvas.ds.scale,
            box.top + (y + app.canvas.ds.offset[1]) * app.canvas.ds.scale];
}"""

WIDGET = """([id, name]) => {
    const node = app.rootGraph.getNodeById(id);
    const widget = node.widgets.find(widget => widget.name === name);
    const box = app.canvas.canvas.getBoundingClientRect();
    const [left, top] = app.canvas.ds.offset;
    return [box.left + node.pos[0] + left + node.size[0] / 2, box.top + node.pos[1] + top + widget.last_y + 10];
}"""


# The front end's dialogs for a first visit would cover the graph, or the form of an app.
SETTINGS = """{"Comfy.TutorialCompleted": true, "Comfy.Release.Status": "skipped",
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"]}"""


def skip_the_welcome(base: Path) -> None:
    """Writes the settings of a returning user into a server's folder, before the server starts."""
    file = base / "user" / "default" / "comfy.settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SETTINGS, encoding="utf-8")


def empty_canvas(page: Any) -> None:
    """Nothing on the canvas, at full size."""
    page.evaluate(CLEAR)
    page.wait_for_timeout(SETTLE)


def open_search(page: Any) -> None:
    """Double clicks the empty canvas until the search takes what is typed; typed beside it, letters are shortcuts."""
    for _ in range(PATIENCE):  # a busy front end takes the two clicks for single ones
        page.mouse.dblclick(*MIDDLE)
        for _ in range(PATIENCE):
            page.wait_for_timeout(SETTLE // 4)
            if page.evaluate(TYPING):
                page.wait_for_timeout(SETTLE)
                return
    raise TimeoutError("double clicks on the empty canvas did not open the search")


def place_from_search(page: Any, words: str, at: tuple[int, int] = (100, 100)) -> Any:
    """A node found by double click and typing, moved to a place; its id."""
    before = page.evaluate("() => app.rootGraph.nodes.length")
    open_search(page)
    page.keyboard.type(words)
    page.get_by_text(words).first.wait_for()  # the list follows the typing with a delay
    for _ in range(PATIENCE):  # Enter does nothing while the list is still being made
        page.wait_for_timeout(2 * SETTLE)
        if page.evaluate("() => app.rootGraph.nodes.length") > before:
            break
        page.keyboard.press("Enter")
    else:
        raise TimeoutError(f"the search gave no node for {words!r}")
    page.wait_for_timeout(SETTLE)
    page.mouse.click(*MIDDLE)  # newer front ends hang the node on the pointer until a click
    page.wait_for_timeout(SETTLE)
    node = page.evaluate(NEWEST)
    page.evaluate(MOVE, [node, *at])
    page.wait_for_timeout(SETTLE)
    return node


def connect(page: Any, source: Any, output: str, target: Any, to: str) -> None:
    """Draws a link from an output to an input with the mouse."""
    page.mouse.move(*page.evaluate(SLOT, [source, False, output]))
    page.mouse.down()
    page.mouse.move(*MIDDLE, steps=4)
    page.mouse.move(*page.evaluate(SLOT, [target, True, to]), steps=4)
    page.mouse.up()
    page.wait_for_timeout(SETTLE)


def edit_widget(page: Any, node: Any, name: str, value: Any) -> None:
    """Clicks a widget on the canvas and types the value, or chooses it from the list."""
    page.mouse.click(*page.evaluate(WIDGET, [node, name]))
    if isinstance(value, bool):
        page.wait_for_timeout(SETTLE)
        return
    asked = page.locator(".litecontextmenu .litemenu-entry, .graphdialog input.value")
    asked.first.wait_for()
    entry = page.locator(f'.litecontextmenu .litemenu-entry[data-value="{value}"]')
    if entry.count():
        entry.click()
    else:
        field = page.locator(".graphdialog input.value")
        field.fill(str(value))
        field.press("Enter")
    asked.first.wait_for(state="detached")
    # The front end takes a click soon after another for the second half of a double click.
    page.wait_for_timeout(SETTLE)


def run_to_the_end(page: Any, server: Any, seconds: float) -> dict[str, Any]:
    """Presses Run and waits for the server's entry in its history."""
    before = set(server.get("/history"))
    page.get_by_role("button", name="Run", exact=True).first.click()
    for _ in range(int(seconds * 2)):
        page.wait_for_timeout(500)
        for prompt, entry in server.get("/history").items():
            if prompt not in before and entry["status"]["status_str"] in ("success", "error"):
                return entry
    raise TimeoutError(f"the workflow did not end within {seconds} s")
