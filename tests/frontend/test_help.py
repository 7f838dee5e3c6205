"""The app in each language: names on the nodes, and the help page behind the node's info button."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from tests.host.support_comfy.boot import PROJECT

# Both front ends follow the browser's language; we have no French texts.
LANGUAGES = {"en": "en-US", "zh": "zh-CN", "ja": "ja-JP", "ko": "ko-KR", "fr": "fr-FR"}
SLOW = ("zh", "ja", "ko")

NODES = ("CLEARAttention", "CLEARUpscale", "CLEARInspect", "CLEARGuide", "CLEARGuideRecord", "CLEARGuideAlign")

SHOW_ALONE = """kind => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    node.pos = [100, 100];
    app.graph.add(node);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300, 60];
    app.canvas.setDirty(true, true);
    const canvas = app.canvas.canvas.getBoundingClientRect();
    return {
        title: node.title,
        title_bar: [canvas.left + 450, canvas.top + 145],
        labels: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.label ?? widget.name])),
        sockets: Object.fromEntries(node.inputs.map(input => [input.name, input.localized_name ?? input.name])),
    };
}"""


def texts(language: str, node: str) -> dict[str, Any]:
    """Names of a node in a language, in English if it has none."""
    file = PROJECT / "locales" / language / "nodeDefs.json"
    file = file if file.is_file() else PROJECT / "locales" / "en" / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8"))[node]


# Newer front ends keep the help panel open, and it would cover what the next test clicks.
CLOSE_PANEL = """async () => {
    const settings = app.extensionManager.setting, name = "Comfy.RightSidePanel.IsOpen";
    if (settings.get(name)) await settings.set(name, false);
}"""


def open_help(tab: Any, place: tuple[float, float], name: str) -> None:
    """Clicks a node's title bar, then its help; again if a busy machine has not drawn the node or its buttons yet."""
    for _ in range(6):
        tab.page.mouse.click(*place)
        try:
            tab.page.get_by_test_id("info-button").first.click(timeout=5_000)
            tab.page.locator("h1").filter(has_text=name).first.wait_for(timeout=5_000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"no help of {name} after clicks on its title bar and its help button")


@pytest.mark.parametrize(
    "language", [pytest.param(language, marks=pytest.mark.slow if language in SLOW else ()) for language in LANGUAGES]
)
def test_names_and_help_are_in_the_users_language(language, open_tab, tmp_path):
    tab = open_tab(locale=LANGUAGES[language])
    for kind in NODES:
        wanted = texts(language, kind)
        shown = tab.page.evaluate(SHOW_ALONE, kind)
        assert shown["title"] == wanted["display_name"]
        names = {name: entry["name"] for name, entry in wanted["inputs"].items()}
        names.pop("control_after_generate", None)  # Newer front ends call it otherwise.
        assert {name: shown["sockets"].get(name, shown["labels"].get(name)) for name in names} == names
        open_help(tab, shown["title_bar"], wanted["display_name"])
        tab.page.screenshot(path=tmp_path / f"{kind}_{language}.png")
    tab.page.evaluate(CLOSE_PANEL)
    if (PROJECT / "locales" / language).is_dir():
        assert tab.about_us() == []
    else:  # The front end requests the page in that language first, and the browser reports it as missing.
        assert [text for text in tab.about_us() if f"/{language}.md" not in text] == []
