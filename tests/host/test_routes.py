"""The routes behind "Get weights": catalogue names and nothing else, and every end of a download is told."""

from __future__ import annotations

import asyncio
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

ROUTE = "/clear_flux/weights"


@pytest.fixture
def routes(pack):
    return import_module(f"{pack.__name__}.nodes.host.server.weights_routes")


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """What the server sends to the open pages."""
    import server

    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(server.PromptServer.instance, "send_sync", lambda event, data: sent.append((event, data)))
    return sent


def ask(*requests: Any) -> list[tuple[int, Any]]:
    """Status and JSON of each request, once all tasks that they started have ended. None is a GET."""
    import server

    async def run() -> list[tuple[int, Any]]:
        app = web.Application()
        app.add_routes(server.PromptServer.instance.routes)
        answers = []
        async with TestClient(TestServer(app)) as client:
            for body in requests:
                if body is None:
                    answer = await client.get(ROUTE)
                elif isinstance(body, bytes):
                    answer = await client.post(ROUTE, data=body)
                else:
                    answer = await client.post(ROUTE, json=body)
                answers.append((answer.status, await answer.json()))
            while pending := [task for task in asyncio.all_tasks() if "fetch_and_report" in repr(task)]:
                await asyncio.wait(pending)
        return answers

    return asyncio.run(run())


def test_the_catalogue_is_listed(host, routes):
    ((status, answer),) = ask(None)
    assert status == 200
    assert [file["file"] for file in answer["files"]] == [release.name for release in routes.CATALOGUE.values()]
    assert answer["folder"] == host.folder_paths.get_folder_paths("clear")[0]
    assert "FLUX" in answer["licence"]
    for file in answer["files"]:
        installed = file["file"] in host.folder_paths.get_filename_list("clear")
        assert bool(file["installed"]) == installed


@pytest.mark.parametrize(
    "body",
    [
        {"name": "../../clear_local_8"},
        {"name": "sub/clear_local_8"},
        {"name": "flux1-dev"},
        {"name": ""},
        {"name": "https://example.com/clear_local_8.safetensors"},
        {"name": ["clear_local_8"]},
        {"name": None},
        {},
        [],
        "clear_local_8",
        b"not json",
        b"",
    ],
    ids=repr,
)
def test_anything_outside_the_catalogue_is_refused(routes, events, monkeypatch, body):
    monkeypatch.setattr(routes, "fetch", lambda *args: pytest.fail(f"it was fetched: {args}"))
    ((status, answer),) = ask(body)
    assert status == 400
    assert answer["error"].endswith(".") and "\n" not in answer["error"]
    assert events == []


def test_a_download_reports_and_ends_as_installed(host, routes, events, monkeypatch):
    folder = Path(host.folder_paths.get_folder_paths("clear")[0])
    target = folder / "clear_local_32.safetensors"
    calls = []

    def fetch(name: str, into: str, progress: Any) -> Path:
        calls.append((name, Path(into)))
        assert isinstance(routes._fetching["clear_local_32"], asyncio.Task)  # asyncio itself keeps none alive
        for done in (1, 2, 50, 100):
            progress(done, 100)
        target.write_bytes(b"weights")
        return target

    monkeypatch.setattr(routes, "fetch", fetch)
    try:
        answers = ask({"name": "clear_local_32"}, {"name": "clear_local_32.safetensors"}, None)
        assert [status for status, _ in answers] == [202, 202, 200]
        assert calls and set(calls) == {("clear_local_32", folder)}
        assert {event for event, _ in events} == {routes.EVENT}
        told = [data for _, data in events]
        assert {"name": "clear_local_32", "done": 100, "total": 100} in told
        assert told[-1] == {"name": "clear_local_32", "installed": "clear_local_32.safetensors"}
        assert len([data for data in told if "total" in data]) < 4 * len(calls), "each chunk was reported"
    finally:
        target.unlink(missing_ok=True)


def test_a_failed_download_ends_in_its_sentence_and_can_be_tried_again(routes, events, monkeypatch):
    def fetch(*_: Any) -> Path:
        raise routes.FetchError("clear_local_16.safetensors was not fetched: no network.")

    monkeypatch.setattr(routes, "fetch", fetch)
    ask({"name": "clear_local_16"})
    ask({"name": "clear_local_16"})
    assert [data for _, data in events] == 2 * [
        {"name": "clear_local_16", "error": "clear_local_16.safetensors was not fetched: no network."}
    ]
    ((_, answer),) = ask(None)
    assert not any(file["fetching"] for file in answer["files"])


def test_offline_mode_is_obeyed(routes, events, monkeypatch):
    """Through the real client: nothing is asked of the network."""
    from huggingface_hub import constants

    asked: list[str] = []
    resolve = socket.getaddrinfo

    def note(host: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        return resolve("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", note)
    ask({"name": "clear_local_16"})
    assert "HF_HUB_OFFLINE" in events[-1][1]["error"]
    assert set(asked) <= {"127.0.0.1", "localhost"}
