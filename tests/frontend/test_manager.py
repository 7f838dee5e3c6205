"""The pack through ComfyUI-Manager itself: offered for a graph that lacks it, installed, used and taken away again.

Only the registry is a stand-in, with the archive that publishing this checkout would give. The Manager is the one that
the host names in its ``manager_requirements.txt``; where it is not installed, these tests skip and say so.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.host.support_comfy import boot
from tests.host.support_comfy.server import Server
from tests.support.page_hands import skip_the_welcome
from tests.support.registry import REAL, Registry
from tools.archive import shipped
from tools.suites import front_end_arguments, host_interpreter

GRAPH = boot.PROJECT / "example_workflows" / "clear_text_to_image_1k_to_4k.json"
OURS = {"CLEARAttention", "CLEARUpscale", "CLEARInspect"}

# Runs in the server before its Manager sends requests.
ASK_THE_STAND_IN = """import os

from comfyui_manager.common import cnr_utils

cnr_utils.base_url = os.environ["CLEAR_TEST_REGISTRY"]
"""

# The lists that the Manager fetches from its own repository come from the stand-in too, which has none.
MANAGER_SETTINGS = """[default]
default_cache_as_channel_url = true
http_channel_enabled = true
channel_url = {url}/channel
"""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry().served() as served:
        yield served


@pytest.fixture
def base(checkout, registry, tmp_path) -> Path:
    """The folder of a server without our pack, whose Manager asks the stand-in."""
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('comfyui_manager') is None)"
    if subprocess.run([host_interpreter(checkout), "-c", found]).returncode:
        pytest.skip("ComfyUI-Manager is not installed in this ComfyUI's environment: see its manager_requirements.txt")
    base = boot.make_base(tmp_path / "base")
    settings = base / "user" / "__manager" / "config.ini"
    settings.parent.mkdir(parents=True)
    settings.write_text(MANAGER_SETTINGS.format(url=registry.url))
    skip_the_welcome(base)
    asks = base / "custom_nodes" / "test_only_registry"
    asks.mkdir()
    (asks / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (asks / "prestartup_script.py").write_text(ASK_THE_STAND_IN)
    return base


@contextmanager
def running(checkout: Path, base: Path, registry: Registry) -> Iterator[Server]:
    with Server(
        checkout,
        host_interpreter(checkout),
        base,
        arguments=["--enable-manager", *front_end_arguments()],
        environment={"CLEAR_TEST_REGISTRY": registry.url},
    ) as server:
        yield server


def wait_for_nodes(page: Any, name: str) -> None:
    """Waits until the front end has read the server's list of nodes."""
    page.wait_for_function(
        f"() => window.app?.rootGraph && '{name}' in (window.LiteGraph?.registered_node_types ?? [])", timeout=90_000
    )


def named_nodes(page: Any) -> dict[str, str]:
    """Type to the pack's name of our nodes on the canvas that the front end knows."""
    return page.evaluate("""() => Object.fromEntries(app.rootGraph.nodes
        .filter(node => node.type.startsWith("CLEAR") && node.constructor.nodeData)
        .map(node => [node.type, node.properties.cnr_id]))""")


@contextmanager
def open_page(browser: Any, server: Server, registry: Registry) -> Iterator[Any]:
    """The front end; its own requests to the registry go to the stand-in."""
    with browser.new_context(viewport={"width": 1600, "height": 900}, bypass_csp=True) as context:
        page = context.new_page()
        page.route(f"{REAL}/**", registry.fulfil)
        page.goto(server.url)
        wait_for_nodes(page, "KSampler")
        yield page


def graph() -> dict[str, Any]:
    """An example as it is shared, without the models that it would offer as well."""
    saved = json.loads(GRAPH.read_text(encoding="utf-8"))
    for node in saved["nodes"]:
        node["properties"].pop("models", None)
    return saved


def install_and_restart(page: Any, pictures: Path) -> None:
    """Presses the buttons that a graph with missing nodes offers."""
    page.evaluate("graph => window.app.loadGraphData(graph)", graph())
    page.wait_for_timeout(2000)
    assert named_nodes(page) == {}
    details = page.get_by_role("button", name="View details")
    if details.count():  # newer front ends list what is missing in a panel
        details.first.click()
    install = page.get_by_role("button", name="Install").first
    install.wait_for(timeout=20_000)
    page.wait_for_timeout(500)
    page.screenshot(path=pictures / "offer.png")
    install.click()
    apply = page.get_by_role("button", name="Apply Changes").first
    apply.wait_for(timeout=120_000)
    page.screenshot(path=pictures / "installed.png")
    apply.click()


def wait_for_restart(server: Server, seconds: float = 120) -> None:
    """Waits until a restarting server is up again with our nodes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(1)
        with suppress(OSError):
            if server.get("/object_info").keys() >= OURS:
                return
    raise TimeoutError(f"no nodes of ours within {seconds} s:\n{server.log}")


def take_away(page: Any, pack: str) -> None:
    """Orders the Manager to remove a pack, as its panel does; starting its queue was a GET before it became a POST."""
    page.evaluate(
        """async pack => {
        const order = {kind: "uninstall", ui_id: "away", client_id: "test",
            params: {node_name: pack, is_unknown: false}};
        const headers = {"Content-Type": "application/json"};
        await fetch("/v2/manager/queue/task", {method: "POST", headers, body: JSON.stringify(order)});
        const started = await fetch("/v2/manager/queue/start", {method: "POST", headers, body: "{}"});
        if (!started.ok) await fetch("/v2/manager/queue/start");
    }""",
        pack,
    )


@pytest.mark.slow
def test_offered_installed_used_and_taken_away(checkout, base, registry, browser, tmp_path):
    pack = registry.pack["id"]
    folder = base / "custom_nodes" / pack
    with running(checkout, base, registry) as server:
        with open_page(browser, server, registry) as page:
            assert not OURS & server.get("/object_info").keys()
            install_and_restart(page, tmp_path)
            wait_for_restart(server)
            assert {
                path.relative_to(folder).as_posix()
                for path in folder.rglob("*")
                if path.is_file() and path.suffix != ".pyc"
            } == {*shipped(boot.PROJECT), ".tracking"}
        with open_page(browser, server, registry) as page:
            wait_for_nodes(page, "CLEARAttention")
            page.evaluate("graph => window.app.loadGraphData(graph)", graph())
            page.wait_for_timeout(2000)
            page.screenshot(path=tmp_path / "used.png")
            assert named_nodes(page) == {"CLEARAttention": pack, "CLEARUpscale": pack}
            take_away(page, pack)
            for _ in range(60):
                page.wait_for_timeout(500)
                if not folder.exists():
                    break
            assert not folder.exists(), server.log
    with running(checkout, base, registry) as server:
        assert not any(name.startswith("CLEAR") for name in server.get("/object_info"))
        assert server.get("/v2/customnode/installed") == {}
