"""Fixtures of the compatibility table, and the record from which docs/compatibility.md is written.

The record is written where ``CLEAR_COMPATIBILITY_RECORD`` is 1: tests/host/compatibility/records, a file for each
ComfyUI. ``python3 -m tests.support.compatibility_table`` renders the table from them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.support_comfy import packs
from tests.host.support_comfy.boot import Host
from tests.host.support_comfy.compatibility import CELL, RECORDS, Cell, Record

FOLDER = Path(__file__).parent
RECORD = Record()
HOSTS: list[Host] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name, rule): this test answers a row of the compatibility table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After all other host tests: some packs change the process they are loaded into."""
    items.sort(key=lambda item: FOLDER in item.path.parents)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = (yield).get_result()
    row = RECORD.row_of(item) if report.when == "call" or report.outcome == "skipped" else None
    if row is not None:
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
        outcome = "absent" if report.skipped else report.outcome
        row.add(item.name, outcome, item.stash.get(CELL, Cell()), reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CLEAR_COMPATIBILITY_RECORD") == "1" and HOSTS:
        path = RECORD.write(RECORDS, {"ComfyUI": HOSTS[0].version} | packs.loaded_versions())
        print(f"\ncompatibility: {len(RECORD.rows)} rows to {path}")


@pytest.fixture
def cell(host: Host, request: pytest.FixtureRequest) -> Cell:
    """Compares, asserts, and notes it for the table."""
    HOSTS[:] = [host]
    return request.node.stash.setdefault(CELL, Cell())


@pytest.fixture
def model(tiny_flux: Callable[..., Any]) -> Any:
    """A FLUX of one double and one single block: enough for a row, and fast."""
    return tiny_flux(depth=1, depth_single_blocks=1)


@pytest.fixture
def stock(host: Host) -> Callable[[str, str], type]:
    """``stock("ScaleROPE", "nodes_rope")`` is a node of ComfyUI; the test is skipped if this version has none."""

    def get(name: str, extras: str = "") -> type:
        if name not in host.nodes.NODE_CLASS_MAPPINGS and extras:
            file = Path(sys.modules["nodes"].__file__).parent / "comfy_extras" / f"{extras}.py"
            if file.is_file():
                asyncio.run(host.nodes.load_custom_node(str(file), module_parent="comfy_extras"))
        if name not in host.nodes.NODE_CLASS_MAPPINGS:
            pytest.skip(f"this ComfyUI has no {name}")
        return host.stock(name)

    return get


@pytest.fixture
def use_pack(host: Host) -> Callable[..., Any]:
    """``use_pack(name)`` is a pack's module; if it cannot be loaded, the test is skipped with the reason."""

    def load(name: str, **options: Any) -> Any:
        try:
            return packs.load_pack(host, name, **options)
        except LookupError as why:
            pytest.skip(str(why))

    return load
