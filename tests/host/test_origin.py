"""Which requests may start a download: ComfyUI's own page and scripts, and no other site's page."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import threading
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

ROUTE = "/clear_flux/weights"
JSON = "application/json"


@pytest.fixture
def routes(pack, monkeypatch):
    """The module of the route; its downloads are noted in ``started``."""
    module = import_module(f"{pack.__name__}.nodes.host.server.weights_routes")
    module.started = []
    monkeypatch.setattr(module, "fetch", lambda name, *_: module.started.append(name))
    return module


def post(headers: dict[str, str], name: str = "clear_local_32") -> tuple[int, Any]:
    """The answer to a request for a download. ``{own}`` in a header stands for the server's address."""
    import server

    async def run() -> tuple[int, Any]:
        app = web.Application()
        app.add_routes(server.PromptServer.instance.routes)
        async with TestClient(TestServer(app)) as client:
            own = f"127.0.0.1:{client.port}"
            sent = {"Content-Type": JSON, **{key: value.format(own=own) for key, value in headers.items()}}
            answer = await client.post(ROUTE, data=json.dumps({"name": name}), headers=sent)
            told = answer.status, await answer.json()
            while pending := [task for task in asyncio.all_tasks() if "fetch_and_report" in repr(task)]:
                await asyncio.wait(pending)
            return told

    return asyncio.run(run())


FOREIGN = [
    pytest.param({"Content-Type": "text/plain", "Origin": "null"}, "null", id="a form"),
    pytest.param({"Content-Type": "text/plain"}, "text/plain", id="a form without origin"),
    pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, "urlencoded", id="a form's own type"),
    pytest.param({"Origin": "null"}, "null", id="a sandboxed page"),
    pytest.param({"Origin": "http://evil.example"}, "evil.example", id="another site"),
    pytest.param(
        {"Origin": "http://evil.example", "Host": "192.168.1.20:8188"}, "evil.example", id="another site, on a network"
    ),
    pytest.param({"Origin": "http://127.0.0.1:1"}, "not from", id="another port"),
    pytest.param({"Origin": "http://evil.example:8188", "Host": "evil.example:8188"}, "IP address", id="rebinding"),
    pytest.param({"Origin": "http://evil.example", "Host": "evil.example"}, "IP address", id="rebinding, port 80"),
    pytest.param({"Origin": "http://127.0.0.1.evil.example", "Host": "127.0.0.1.evil.example"}, "IP", id="like an IP"),
    pytest.param({"Origin": "http://evil-local", "Host": "evil.example"}, "not from", id="local to another"),
]
NO_ADDRESS = pytest.param({"Origin": "http://[", "Host": "["}, "not from", id="no address")
"""For our own check only: the host fails on it by itself."""


@pytest.mark.parametrize(("headers", "named"), [*FOREIGN, NO_ADDRESS])
def test_another_site_starts_no_download(routes, headers, named):
    status, answer = post(headers)
    assert routes.started == [] and status in (400, 403)
    assert named in answer["error"] and answer["error"].endswith(".") and "\n" not in answer["error"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="a script"),
        pytest.param({"Origin": "http://{own}"}, id="the own page"),
        pytest.param({"Origin": "http://LocalHost", "Host": "localhost:80"}, id="the scheme's port"),
        pytest.param({"Origin": "http://[::1]:8188", "Host": "[::1]:8188"}, id="IPv6"),
        pytest.param({"Origin": "http://192.168.1.20:8188", "Host": "192.168.1.20:8188"}, id="an address at home"),
        pytest.param({"Origin": "http://studio:8188", "Host": "studio:8188"}, id="a machine's name"),
        pytest.param({"Origin": "http://studio.local:8188", "Host": "studio.local:8188"}, id="a local name"),
        pytest.param({"Origin": "https://pictures.example", "Host": "pictures.example"}, id="a proven name"),
        pytest.param({"Content-Type": "application/json; charset=UTF-8", "Origin": "http://{own}"}, id="a charset"),
    ],
)
def test_the_own_page_and_scripts_do(routes, headers):
    assert post(headers) == (202, {"fetching": "clear_local_32"})
    assert routes.started == ["clear_local_32"]


def test_what_the_host_was_told_to_trust_is_trusted(routes, monkeypatch):
    from comfy.cli_args import args

    asked = {"Origin": "http://pictures.example", "Host": "pictures.example"}
    monkeypatch.setattr(args, "enable_cors_header", "*")
    assert post(asked)[0] == 403, "* names nobody"
    monkeypatch.setattr(args, "enable_cors_header", "http://pictures.example")
    assert post(asked)[0] == 202
    assert post({**asked, "Host": "127.0.0.1:8188"})[0] == 202, "behind a proxy that changes Host"
    monkeypatch.setattr(args, "enable_cors_header", None)
    monkeypatch.setattr(args, "listen", "127.0.0.1,pictures.example")
    assert post(asked)[0] == 202
    assert post({"Origin": "http://evil.example", "Host": "evil.example"})[0] == 403


def test_a_download_outlives_a_collection_of_garbage(routes, monkeypatch):
    """An event loop keeps weak references to its tasks only; the answer has long been sent by then."""
    import server

    told: list[Any] = []
    going, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(server.PromptServer.instance, "send_sync", lambda event, data: told.append(data))
    monkeypatch.setattr(routes, "fetch", lambda *_: (going.set(), may_end.wait(20)))

    async def run() -> None:
        app = web.Application()
        app.add_routes(server.PromptServer.instance.routes)
        async with TestClient(TestServer(app)) as client:
            await client.post(ROUTE, json={"name": "clear_local_32"})
            await asyncio.to_thread(going.wait, 20)
            gc.collect()
            assert [type(task) for task in routes._fetching.values()] == [asyncio.Task]
            may_end.set()
            while routes._fetching:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert [data["name"] for data in told] == ["clear_local_32"]


@pytest.mark.parametrize("path", [ROUTE, f"/api{ROUTE}"])
def test_a_running_server_refuses_them_too(running_server, path):
    """Under both names of the route. The file does not exist: were the request heard, nothing would be fetched."""
    own = urlsplit(running_server.url).netloc
    for case in FOREIGN:
        headers, named = case.values
        sent = {"Content-Type": JSON, "Host": own, **{key: value.format(own=own) for key, value in headers.items()}}
        status, text = send(own, path, sent)
        assert status in (400, 403) and "no_such_file" not in text, case.id
        assert not text or named in json.loads(text)["error"], case.id  # The host itself refuses some, without a word.
    assert send(own, path, {"Content-Type": JSON, "Host": own, "Origin": running_server.url})[0] == 400


def send(server: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and text of the answer to a POST with these headers, Host among them."""
    client = http.client.HTTPConnection(server, timeout=30)
    client.putrequest("POST", path, skip_host=True)
    body = json.dumps({"name": "no_such_file"}).encode()
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        client.putheader(key, value)
    client.endheaders(body)
    answer = client.getresponse()
    text = answer.read().decode()
    client.close()
    return answer.status, text
