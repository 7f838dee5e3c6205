"""Fixtures of the front-end tests: every ComfyUI found, as a server with the pack, and its real front end in a browser.

They run in the project's own ``.venv`` (``python3 dev.py test tests/frontend``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.page_hands import skip_the_welcome
from tools.suites import (
    find_browser,
    find_hosts,
    front_end_arguments,
    front_end_version,
    host_interpreter,
    host_version,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

from tests.host.support_comfy import boot
from tests.host.support_comfy.server import Server

WORKFLOWS = sorted((boot.PROJECT / "example_workflows").glob("*.json"))

# Their nodes are in examples of the fast set, with other settings.
SLOW = {
    "clear_8k_in_stages_with_guidance",
    "clear_2k_lora_in_late_stages",
    "clear_qwen_image_to_4k",
    "clear_flux2_klein_to_4k",
    "clear_krea_2_to_4k",
    "clear_refine_after_esrgan",
    "clear_sdxl_to_4k",
    "clear_upscale_faithful.app",
}

BROWSER, HOSTS = find_browser(), find_hosts()

if not (BROWSER and HOSTS):
    collect_ignore_glob = ["*"]

# At every start Chromium looks for updates and contacts Google's services; tests need neither.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Deprecation warnings are printed by the front end's own file: only the stack tells who is meant.
TELL_WHO_WARNED = """for (const level of ["warn", "error"]) {
    const print = console[level];
    console[level] = (...told) => {
        const frames = new Error().stack.split("\\n").filter(frame => frame.includes("/extensions/"));
        const callers = frames.map(frame => frame.trim()).join(", ");
        print.apply(console, callers ? [...told, `called by ${callers}`] : told);
    };
}"""

# Else the front end prints each of them once in a page, and names only the first script that it meets.
REPEAT_WARNINGS = "() => { LiteGraph.alwaysRepeatWarnings = true; }"


def pytest_report_header() -> str | list[str]:
    if not (BROWSER and HOSTS):
        return "frontend tests are left out: they need a ComfyUI (COMFYUI_PATH) and Chromium or Chrome on the PATH"
    return [f"front end {front_end_version(checkout)} on ComfyUI {host_version(checkout)}" for checkout in HOSTS]


@dataclass
class OpenPage:
    """The front end in a browser tab, and its errors and warnings.

    Attributes:
        page: Playwright's page.
        complaints: Errors and warnings of the console, uncaught errors and failed requests, with their source.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)

    def about_us(self) -> list[str]:
        """Complaints that name the pack, its files or its nodes."""
        return [text for text in self.complaints if "clear" in text.lower()]

    def deprecated(self) -> list[str]:
        """Warnings that a script of ours reads or calls what a later front end will not have."""
        return [text for text in self.about_us() if "deprecated" in text.lower()]

    def alerts(self) -> list[str]:
        """Texts that the front end shows over the graph: dialogs and messages in a corner.

        Newer front ends keep an empty element of that role for messages to come.
        """
        return [
            text
            for role in ("dialog", "alertdialog", "alert")
            for text in self.page.get_by_role(role).all_inner_texts()
            if text.strip()
        ]

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow as the menu does, and lets the front end settle."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(1500)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox does not start as root, and tests in containers often run as root.
    rootless = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS + rootless)
        yield launched
        launched.close()


def install_tiny_flux(base: Path) -> None:
    """The demo's trained FLUX and its windows, in folders ``demo``, and the node that the demo's graph needs."""
    demo = boot.PROJECT / "demo"
    for files, folder in ((demo / "tiny_flux", "diffusion_models"), (demo / "tiny_flux" / "windows", "clear")):
        target = base / "models" / folder / "demo"
        target.mkdir(parents=True)
        for file in files.glob("*.safetensors"):
            shutil.copy(file, target)
    helper = demo / "comfyui" / "tiny_flux_text_and_pixels.py"
    # It imports the rest of the demo from the checkout around its file.
    (base / "custom_nodes" / helper.name).symlink_to(helper)


@pytest.fixture(scope="session", params=HOSTS, ids=lambda checkout: f"ComfyUI {host_version(checkout)}")
def checkout(request: pytest.FixtureRequest) -> Path:
    """One ComfyUI after the other."""
    return request.param


@pytest.fixture(scope="session")
def server(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One ComfyUI with the pack installed, and an empty file under every model name that our examples ask for.

    Neither the front end nor the server's checks of a workflow look further than the name.
    """
    base = boot.make_base(tmp_path_factory.mktemp("frontend"))
    for path in WORKFLOWS:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for model in node["properties"].get("models", []):
                file = base / "models" / model["directory"] / model["name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    boot.install_pack(base)
    install_tiny_flux(base)
    skip_the_welcome(base)
    # No button in these tests may reach the network.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        with Server(checkout, host_interpreter(checkout), base, arguments=front_end_arguments()) as running:
            yield running


@pytest.fixture(
    scope="module",
    params=[pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in WORKFLOWS],
    ids=lambda path: path.stem,
)
def workflow(request: pytest.FixtureRequest, server: Server) -> dict[str, Any]:
    """An example workflow as the server hands it to the template browser."""
    assert request.param.stem in server.get("/workflow_templates")[boot.PACK_FOLDER]
    return server.get(f"/api/workflow_templates/{boot.PACK_FOLDER}/{request.param.name}")


@contextmanager
def opened_page(browser: Browser, server: Server, **options: Any) -> Iterator[OpenPage]:
    """A fresh tab with the front end ready, closed at the end; the options are those of a browser context."""
    with browser.new_context(viewport={"width": 1600, "height": 900}, **options) as context:
        opened = OpenPage(context.new_page())
        opened.page.on(
            "console",
            lambda message: (
                opened.complaints.append(f"{message.text} ({message.location})")
                if message.type in ("error", "warning")
                else None
            ),
        )
        opened.page.add_init_script(TELL_WHO_WARNED)
        opened.page.on("pageerror", lambda error: opened.complaints.append(f"{error.message}\n{error.stack}"))
        opened.page.on("requestfailed", lambda request: opened.complaints.append(f"{request.url}: {request.failure}"))
        opened.page.goto(server.url)
        opened.page.wait_for_function(
            "() => window.app?.graph && window.LiteGraph?.registered_node_types?.['CLEARAttention']", timeout=90_000
        )
        opened.page.evaluate(REPEAT_WARNINGS)
        yield opened
        assert not opened.deprecated(), opened.deprecated()[0]


@pytest.fixture
def open_tab(browser: Browser, server: Server) -> Iterator[Callable[..., OpenPage]]:
    """``open_tab(**options)`` is a fresh tab with the front end ready; the options are those of a browser context."""
    with ExitStack() as tabs:
        yield lambda **options: tabs.enter_context(opened_page(browser, server, **options))


@pytest.fixture(scope="module")
def lasting_tab(browser: Browser, server: Server) -> Iterator[OpenPage]:
    """One tab for all tests of a file that only load graphs into it."""
    with opened_page(browser, server) as opened:
        yield opened


@pytest.fixture
def tab(open_tab: Callable[..., OpenPage]) -> OpenPage:
    """A fresh tab with the front end ready."""
    return open_tab()


@pytest.fixture(params=[False, True], ids=["canvas", "elements"])
def renderer(request: pytest.FixtureRequest, tab: OpenPage) -> Iterator[str]:
    """Both renderers of the front end; the server keeps the setting, so it is restored."""
    choose = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    tab.page.evaluate(choose, request.param)
    yield "elements" if request.param else "canvas"
    tab.page.evaluate(choose, False)
