"""The routes behind what the front end writes on our nodes."""

from __future__ import annotations

import asyncio
import re
import shutil
from importlib import import_module
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.host.support_comfy.boot import PROJECT

WINDOWS = PROJECT / "demo" / "tiny_flux" / "windows"


@pytest.fixture
def advice(pack):
    """``advice(spec, size, has_weights=True, **settings)`` is the line about FLUX.1."""
    line, families, settings = (
        import_module(f"{pack.__name__}.clear_core.{name}") for name in ("inspection.cost_line", "families", "settings")
    )
    shape = families.ModelShape.usual(families.FLUX1)

    def expected(spec: Any, size: Any, has_weights: bool = True, **values: Any) -> str:
        made = spec and settings.ClearSettings(spec, **values)
        return line.cost_line(made, shape, size, has_weights=has_weights)

    return expected


def ask(path: str, **asked: Any) -> Any:
    """The JSON answer to a GET; anything but 200 fails, since a browser would complain about it."""
    import server

    async def run() -> Any:
        app = web.Application()
        app.add_routes(server.PromptServer.instance.routes)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get(path, params={key: str(value) for key, value in asked.items()})
            assert answer.status == 200
            return await answer.json()

    return asyncio.run(run())


def test_the_pack_names_itself_as_pyproject_does(pack):
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    answer = ask("/clear_flux/pack")
    assert [f'{key} = "{value}"' in text.splitlines() for key, value in answer.items()] == [True, True]
    assert answer["name"] == "clear-flux" and re.fullmatch(r"\d+\.\d+\.\d+", answer["version"])


@pytest.mark.parametrize(
    "file, asked, radius, down_factor",
    [
        ("clear_local_16_down_4", {"radius": 0, "down_factor": 0}, 16, 4),
        ("clear_local_8", {"radius": 0, "down_factor": 0}, 8, 1),
        ("clear_local_8", {"radius": 24, "down_factor": 2}, 24, 2),
    ],
    ids=str,
)
def test_zero_is_what_the_weights_were_trained_for(host, pack, advice, file, asked, radius, down_factor):
    core = import_module(f"{pack.__name__}.clear_core")
    folder = host.base / "models" / "clear" / "of_the_demo"  # beside the files of the same name that other tests use
    folder.mkdir()
    shutil.copy(WINDOWS / f"{file}.safetensors", folder)
    try:
        answer = ask(
            "/clear_flux/cost", weights_name=f"of_the_demo/{file}.safetensors", width=4096, height=2048, **asked
        )
        assert answer == {"line": advice(core.ClearSpec(radius, down_factor), (4096, 2048))}
    finally:
        shutil.rmtree(folder)


def test_what_the_node_knows_reaches_the_line(advice, pack):
    core = import_module(f"{pack.__name__}.clear_core")
    answer = ask(
        "/clear_flux/cost",
        weights_name="none",
        radius=8,
        down_factor=1,
        width=1024,
        height=1024,
        dense_blocks="0-18",
        min_tokens=100,
        start_percent=0.25,
        end_percent=0.5,
    )
    settings = {"dense_blocks": "0-18", "min_tokens": 100, "start_percent": 0.25, "end_percent": 0.5}
    assert answer["line"] == advice(core.ClearSpec(8), (1024, 1024), has_weights=False, **settings)
    assert ask("/clear_flux/cost", windows="off")["line"] == advice(None, None)
    assert "min_tokens" in ask("/clear_flux/cost", width=1024, height=1024, min_tokens=4097)["line"]


@pytest.mark.parametrize(
    "asked, named",
    [
        ({"radius": "-1"}, "radius"),
        ({"width": "1e9", "height": "10"}, "width"),
        ({"width": "70000"}, "width"),
        ({"weights_name": "../../secret"}, "secret"),
        ({"weights_name": "mine.safetensors"}, "mine.safetensors"),
        ({"weights_name": "broken.safetensors"}, "broken.safetensors"),
        ({"dense_blocks": "d99"}, "dense_blocks"),
        ({"down_factor": "x"}, "down_factor"),
        ({"strength": "2"}, "strength"),
        ({"start_percent": "x"}, "start_percent"),
        ({"start_percent": "0.6", "end_percent": "0.4"}, "end_percent"),
        ({"weights_name": "clear_local_32.safetensors"}, "Get weights"),
        ({"weights_name": "mine.safetensors"}, "models/clear"),
    ],
    ids=str,
)
def test_a_wrong_question_gets_one_sentence(host, asked, named):
    broken = host.base / "models" / "clear" / "broken.safetensors"
    broken.write_bytes(b"no weights")
    try:
        answer = ask("/clear_flux/cost", **asked)
        assert answer.keys() == {"error"} and named in answer["error"] and "\n" not in answer["error"]
    finally:
        broken.unlink()
