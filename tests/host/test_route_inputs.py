"""What a request may bring to the routes: anything; the answer is one short sentence and never a traceback."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

WEIGHTS, COST, PACK = "/clear_flux/weights", "/clear_flux/cost", "/clear_flux/pack"
NAMES = b'{"name": "%s"}'


def answers(*requests: tuple[str, str, dict[str, Any]]) -> list[tuple[int, Any]]:
    """Status and JSON of each request (method, path, options)."""
    import server

    async def run() -> list[tuple[int, Any]]:
        app = web.Application(client_max_size=100 << 20)
        app.add_routes(server.PromptServer.instance.routes)
        told = []
        async with TestClient(TestServer(app)) as client:
            for method, path, options in requests:
                answer = await client.request(method, path, **options)
                text = await answer.text()
                told.append((answer.status, json.loads(text) if answer.content_type == "application/json" else text))
        return told

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        pytest.param(NAMES % b"clear_local_8", "; charset=klingon", id="unknown charset"),
        pytest.param(NAMES % b"clear_local_8", "; charset=utf-7", id="odd charset"),
        pytest.param(NAMES % b"clear_local_8", "; charset=idna", id="a codec that is no charset"),
        pytest.param(NAMES % b"clear_local_8", "; charset=" + "x" * 5000, id="a long charset"),
        pytest.param('{"name": "clear_local_8"}'.encode("utf-16"), "", id="utf-16"),
        pytest.param(b'{"name": ' + b"[" * 100_000, "", id="deep brackets"),
        pytest.param(b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}", "", id="brackets that fit"),
        pytest.param(b'{"a":' * 100_000, "", id="deep braces"),
        pytest.param(b'{"name": ' + b"1" * 4301 + b"}", "", id="4301 digits"),
        pytest.param(b'{"name": 1e999}', "", id="no finite number"),
        pytest.param(NAMES % (b"x" * 100_000), "", id="a name of 100 kB"),
        pytest.param(NAMES % (b"x" * 900), "", id="a name of 900 bytes"),
        pytest.param(NAMES % b"\\ud800", "", id="half a surrogate"),
        pytest.param(NAMES % b"\xff", "", id="no utf-8"),
    ],
)
def test_a_body_of_any_kind_gets_one_sentence(pack, body, charset):
    headers = {"Content-Type": "application/json" + charset}
    ((status, answer),) = answers(("POST", WEIGHTS, {"data": body, "headers": headers}))
    assert status == 400 and answer.keys() == {"error"}
    told = answer["error"]
    assert told.isprintable() and told.endswith(".") and len(told) < 400


def test_a_body_without_an_end_is_not_awaited(pack):
    """In pieces, of no announced length: no more is read than a name takes."""
    sent = []

    async def pieces():
        for _ in range(200):
            sent.append(1)
            yield b"[" * 1024
            await asyncio.sleep(0)

    ((status, answer),) = answers(
        ("POST", WEIGHTS, {"data": pieces(), "headers": {"Content-Type": "application/json"}})
    )
    assert status == 400 and "longer than" in answer["error"]


NUMBERS = ("width", "height", "radius", "down_factor", "min_tokens", "strength", "start_percent", "end_percent")
TEXTS = ("weights_name", "dense_blocks")
VALUES = ("1" * 4301, "9" * 20, "-1", "nan", "inf", "1e999", "", "x" * 6000, "\0", "\ud800", "٣", "a\nb", "[" * 2000)


def test_a_question_of_any_kind_gets_one_sentence(pack):
    """Every value for every name that the cost line knows."""
    asked = [(name, value) for name in (*NUMBERS, *TEXTS) for value in VALUES]
    whole = {"width": "4096", "height": "4096", "weights_name": "none"}
    queries = [{**whole, name: value.encode("utf-8", "replace").decode()} for name, value in asked]
    for (name, _), (status, answer) in zip(
        asked, answers(*(("GET", COST, {"params": q}) for q in queries)), strict=True
    ):
        assert status == 200, name
        (told,) = answer.values()
        assert told.isprintable() and len(told) < 400, name
        if name in NUMBERS and "error" in answer:
            assert told.startswith(f"{name} is ") and "; expected a " in told, name


def test_raw_bytes_in_a_question_are_no_fault_of_the_server(pack):
    import yarl

    paths = [f"{COST}?weights_name=%ff%fe", f"{COST}?%00=%00", f"{COST}?width=%ed%a0%80", f"{PACK}?x=%ff"]
    asked = [("GET", yarl.URL(path, encoded=True), {}) for path in paths]
    assert all(status == 200 for status, _ in answers(*asked))
