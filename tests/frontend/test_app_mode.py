"""The faithful upscale as an app, from the template browser to the enlarged picture: what a person sees and presses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.host.support_comfy import boot
from tests.host.support_comfy.server import output_files
from tests.support.page_hands import run_to_the_end
from tests.support.tiny_examples import PICTURE, tiny, write_picture
from tools.suites import front_end_version

NAME = "clear_upscale_faithful.app"
FORM = {"image": "Your picture", "text": "shows", "upscale_by": "Size", "denoise": "Strength"}
"""The widgets that the app shows, from top to bottom, with a word of what is said about each."""

FIRST_WITH_APPS = (1, 40)
"""The front end of ComfyUI 0.9 has a forerunner: it opens the same file, and its form holds every widget."""

LOADING = 90_000
"""Milliseconds: the browser of templates begins with the pictures of hundreds."""

SAVED = "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"
KEYS = "all => all.map(one => one.dataset.widgetKey.split(':').pop())"
CUT_OFF = """all => all.flatMap(one => [one, ...one.querySelectorAll("*")])
    .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"""
SIDES = """name => [...document.images].filter(one => one.src.includes(name))
    .map(one => [one.naturalWidth, one.naturalHeight])"""


@pytest.fixture
def picture(server) -> None:
    """A picture among the server's, before a page opens, which asks once what there is."""
    write_picture(server.base / "input" / "example.png")


def open_template(page: Any) -> None:
    """As a user does it: the browser of templates, a search, a click on the card."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_role("textbox").first.fill(NAME.removesuffix(".app"), timeout=LOADING)
    card = page.get_by_test_id(f"template-workflow-{NAME}").first
    card.click(timeout=LOADING)
    card.wait_for(state="detached")
    page.wait_for_function("count => app.rootGraph.nodes.length === count", arg=len(written()["nodes"]))
    page.wait_for_timeout(1500)


def written() -> dict[str, Any]:
    return json.loads((boot.PROJECT / "example_workflows" / f"{NAME}.json").read_text(encoding="utf-8"))


def with_tiny_flux(route: Any) -> None:
    """What the app sends, with small files and few steps in their place."""
    if route.request.method == "POST":
        asked = route.request.post_data_json
        route.continue_(post_data=json.dumps({**asked, "prompt": tiny(asked["prompt"])}))
    else:
        route.continue_()


def test_it_opens_shows_its_form_runs_and_is_saved_unchanged(picture, tab, server, checkout, tmp_path):
    page = tab.page
    open_template(page)
    page.screenshot(path=tmp_path / "opened.png")
    if tuple(map(int, front_end_version(checkout).split(".")[:2])) >= FIRST_WITH_APPS:
        shown = page.get_by_test_id("app-mode-widget-item")
        assert shown.evaluate_all(KEYS) == [*FORM]
        assert all(word in text for word, text in zip(FORM.values(), shown.all_inner_texts(), strict=True))
        assert page.get_by_test_id("app-mode-widget-description").evaluate_all(CUT_OFF) == []
        assert page.get_by_test_id("linear-validation-warning").count() == 0
    else:
        assert page.get_by_role("button", name="Open Workflow").is_visible()
    opened = page.evaluate(SAVED)
    page.route("**/prompt", with_tiny_flux)
    (made,) = output_files(run_to_the_end(page, server, 240), server.base)
    page.wait_for_timeout(2000)
    page.screenshot(path=tmp_path / "run.png")
    assert made.name.startswith("CLEAR_upscale_faithful_")
    assert [2 * side for side in PICTURE] in page.evaluate(SIDES, made.name)
    saved = page.evaluate(SAVED)
    assert {name: saved["extra"][name] for name in ("linearMode", "linearData")} == {
        name: written()["extra"][name] for name in ("linearMode", "linearData")
    }
    for before, after in zip(opened["nodes"], saved["nodes"], strict=True):
        # The front end of ComfyUI 0.9 saves the last line of progress behind them.
        values = before.get("widgets_values", [])
        assert (after["id"], after.get("widgets_values", [])[: len(values)]) == (before["id"], values)
    assert saved["links"] == opened["links"]
    assert tab.about_us() == [] and tab.alerts() == []
