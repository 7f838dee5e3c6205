"""Fixtures of the weights tests: golden students as files, and a client that fetches from a stand-in for the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.golden_files import GOLDEN
from tests.support.hub import Hub
from tests.support.hub_client import SMALL, Client


@pytest.fixture
def local(tmp_path) -> Path:
    path = tmp_path / "clear_local_8.safetensors"
    path.write_bytes((GOLDEN / "student_7_down1.safetensors").read_bytes())
    return path


@pytest.fixture
def pooled(tmp_path) -> Path:
    path = tmp_path / "clear_local_8_down_4.safetensors"
    path.write_bytes((GOLDEN / "student_8_down4.safetensors").read_bytes())
    return path


@pytest.fixture(scope="session")
def stand_in() -> Iterator[Hub]:
    hub = Hub(SMALL)
    yield hub
    hub.close()


@pytest.fixture
def hub(stand_in) -> Hub:
    stand_in.serve(SMALL)
    return stand_in


@pytest.fixture(scope="session")
def client(stand_in, tmp_path_factory) -> Iterator[Client]:
    """One client for all tests that need no environment of their own, because importing torch is slow."""
    with Client(stand_in.endpoint, tmp_path_factory.mktemp("client") / "home") as client:
        yield client


@pytest.fixture
def fresh(tmp_path_factory) -> Iterator[Callable[..., Client]]:
    """Makes clients for one test."""
    with ExitStack() as stack:
        yield lambda endpoint, setup="", **environment: stack.enter_context(
            Client(endpoint, tmp_path_factory.mktemp("client") / "home", setup, **environment)
        )


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models" / "clear"
