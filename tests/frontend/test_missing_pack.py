"""A graph with our nodes and no pack: the front end asks the registry for our id and offers to install it.

Registry and Manager are stand-ins inside the browser: no test may ask the real ones (``test_manager.py`` has a real
Manager). The front end and what it makes of the graph are real; that the nodes are missing is what it reads in the
server's list of nodes.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.registry import REAL, Registry

GRAPH = {
    "last_node_id": 1,
    "last_link_id": 0,
    "links": [],
    "groups": [],
    "config": {},
    "extra": {},
    "version": 0.4,
    "nodes": [
        {
            "id": 1,
            "type": "CLEARAttention",
            "pos": [300, 200],
            "size": [300, 300],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "widgets_values": ["none", 1],
            "properties": {"cnr_id": "clear-flux", "ver": "0.1.0", "Node name for S&R": "CLEARAttention"},
        }
    ],
}


class StandIns:
    """The registry, and a Manager as newer hosts have it.

    Attributes:
        ordered: Orders that the Manager received.
    """

    def __init__(self, page: Any) -> None:
        self.registry = Registry()
        self.ordered: list[dict[str, Any]] = []
        page.route(f"{REAL}/**", self.registry.fulfil)
        page.route("**/v2/**", self.manager)
        page.route("**/object_info", self.without_our_nodes)
        page.route("**/system_stats", self.with_manager)
        page.route_web_socket("**/ws*", self.flags)

    def manager(self, route: Any) -> None:
        if route.request.method == "POST" and "queue" in route.request.url:
            self.ordered.append(
                {"path": urlsplit(route.request.url).path, "body": json.loads(route.request.post_data or "{}")}
            )
        route.fulfill(status=200, json={})

    def without_our_nodes(self, route: Any) -> None:
        nodes = route.fetch().json()
        route.fulfill(json={name: node for name, node in nodes.items() if not name.startswith("CLEAR")})

    def with_manager(self, route: Any) -> None:
        stats = route.fetch().json()
        stats["system"]["argv"].append("--enable-manager")
        route.fulfill(json=stats)

    def flags(self, socket: Any) -> None:
        server = socket.connect_to_server()

        def forward(message: str | bytes) -> None:
            if isinstance(message, str) and (told := json.loads(message)).get("type") == "feature_flags":
                told["data"]["extension"] = {"manager": {"supports_v4": True, "supports_csrf_post": True}}
                message = json.dumps(told)
            socket.send(message)

        server.on_message(forward)


@pytest.fixture
def bare(browser, server):
    """A page in which our nodes are missing, and the stand-ins it talks to."""
    # The test server forbids pages to reach others, and with that the stand-in of the registry.
    context = browser.new_context(viewport={"width": 1600, "height": 900}, bypass_csp=True)
    page = context.new_page()
    stand_ins = StandIns(page)
    page.goto(server.url)
    page.wait_for_function(
        "() => window.app?.rootGraph && window.LiteGraph?.registered_node_types?.KSampler", timeout=90_000
    )
    yield page, stand_ins
    context.close()


def test_the_pack_is_offered_by_our_id(bare, server, tmp_path):
    page, stand_ins = bare
    assert page.evaluate("() => 'CLEARAttention' in LiteGraph.registered_node_types") is False
    page.evaluate("graph => window.app.loadGraphData(graph)", GRAPH)
    page.wait_for_timeout(2000)
    page.screenshot(path=tmp_path / "loaded.png")
    details = page.get_by_role("button", name="View details")
    if details.count():  # newer front ends list what is missing in a panel
        details.first.click()
    install = page.get_by_role("button", name="Install", exact=False)
    install.first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "offer.png")
    pack = stand_ins.registry.pack["id"]
    assert any(pack in path for path in stand_ins.registry.asked)
    page.wait_for_timeout(500)
    install.first.click()
    page.wait_for_timeout(2000)
    tasks = [order["body"] for order in stand_ins.ordered if order["path"].endswith("/task")]
    assert [(task["kind"], task["params"]["id"]) for task in tasks] == [("install", pack)]
