"""The pack through ComfyUI-Manager itself: offered for a graph that lacks it, installed, used, updated, taken away.

Only the registry is a stand-in, with the archive that publishing this checkout would give, and one
of an older version, made up of it. The Manager is the one that
the host names in its ``manager_requirements.txt``; where it is not installed, these tests skip and say so.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.host.support_comfy import boot
from tests.host.support_comfy.server import Server
from tests.support.page_hands import skip_the_welcome
from tests.support.registry import REAL, Registry, pack_id
from tools.archive import archive, shipped
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


RENAMED, NOW = "ntk_scale", "ntk_factor"
"""A widget of CLEAR Attention as the made-up older version calls it, and as it is called now."""

GONE = "nodes/gone.py"
"""A file of the older version that is no more."""


def older_archive(packed: bytes) -> bytes:
    """Version 0.0.9, as it might have been: one widget has another name, and there is one file more."""
    older = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as now, zipfile.ZipFile(older, "w") as then:
        for name in now.namelist():
            content = now.read(name)
            if name == "pyproject.toml":
                content = re.sub(rb'(?m)^version = ".*"', b'version = "0.0.9"', content)
            if name == "nodes/attention.py":
                assert content.count(f'"{NOW}"'.encode()) == 1
                content = content.replace(f'"{NOW}"'.encode(), f'"{RENAMED}"'.encode())
            then.writestr(name, content)
        then.writestr(GONE, "")
    return older.getvalue()


def installed_files(folder: Path) -> set[str]:
    """What lies in a pack's folder, without what Python writes there."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix() for path in files}


SET_AND_SAVE = """([name, value]) => {
    const node = app.rootGraph.nodes.find(node => node.type === "CLEARAttention");
    node.widgets.find(widget => widget.name === name).value = value;
    return app.rootGraph.serialize();
}"""

WIDGETS = """() => Object.fromEntries(app.rootGraph.nodes.find(node => node.type === "CLEARAttention")
    .widgets.map(widget => [widget.name, widget.value]))"""


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


def order(page: Any, kind: str, params: dict[str, Any]) -> None:
    """Orders something of the Manager, as its panel does; starting its queue was a GET before it became a POST."""
    page.evaluate(
        """async ([kind, params]) => {
        const order = {kind, ui_id: kind, client_id: "test", params};
        const headers = {"Content-Type": "application/json"};
        await fetch("/v2/manager/queue/task", {method: "POST", headers, body: JSON.stringify(order)});
        const started = await fetch("/v2/manager/queue/start", {method: "POST", headers, body: "{}"});
        if (!started.ok) await fetch("/v2/manager/queue/start");
    }""",
        [kind, params],
    )


@pytest.mark.slow
def test_offered_installed_used_updated_and_taken_away(checkout, base, registry, browser, tmp_path):
    pack, version = pack_id()
    folder = base / "custom_nodes" / pack
    packed = archive(boot.PROJECT, shipped(boot.PROJECT))
    registry.publish("0.0.9", older_archive(packed))
    with running(checkout, base, registry) as server:
        with open_page(browser, server, registry) as page:
            assert not OURS & server.get("/object_info").keys()
            install_and_restart(page, tmp_path)
            wait_for_restart(server)
            assert installed_files(folder) == {*shipped(boot.PROJECT), ".tracking", GONE}
        with open_page(browser, server, registry) as page:
            wait_for_nodes(page, "CLEARAttention")
            page.evaluate("graph => window.app.loadGraphData(graph)", graph())
            page.wait_for_timeout(2000)
            page.screenshot(path=tmp_path / "used.png")
            assert named_nodes(page) == {"CLEARAttention": pack, "CLEARUpscale": pack}
            saved = page.evaluate(SET_AND_SAVE, [RENAMED, 4.5])
            registry.publish(version, packed)
            order(page, "update", {"node_name": pack, "node_ver": "0.0.9"})
            for _ in range(60):
                page.wait_for_timeout(500)
                if f"Installation reserved: {pack}" in server.log:
                    break
            assert f"Installation reserved: {pack}" in server.log  # for the next start
    with running(checkout, base, registry) as server:
        # Managers 4.0 to 4.2 look for files that are no more in the wrong folder, and leave them.
        assert installed_files(folder) - {GONE} == {*shipped(boot.PROJECT), ".tracking"}
        with open_page(browser, server, registry) as page:
            wait_for_nodes(page, "CLEARAttention")
            page.evaluate("graph => window.app.loadGraphData(graph)", saved)
            page.wait_for_timeout(2000)
            page.screenshot(path=tmp_path / "updated.png")
            widgets = page.evaluate(WIDGETS)
            assert widgets[NOW] == 4.5 and RENAMED not in widgets
            order(page, "uninstall", {"node_name": pack, "is_unknown": False})
            for _ in range(60):
                page.wait_for_timeout(500)
                if not folder.exists():
                    break
            assert not folder.exists(), server.log
    with running(checkout, base, registry) as server:
        assert not any(name.startswith("CLEAR") for name in server.get("/object_info"))
        assert server.get("/v2/customnode/installed") == {}
