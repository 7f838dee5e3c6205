"""The map names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ROOTS = (
    "",
    "clear_core",
    "clear_core/attention",
    "clear_core/attention/backends",
    "clear_core/distill",
    "clear_core/inspection",
    "clear_core/inspection/locality",
    "clear_core/integrations",
    "clear_core/parallel",
    "nodes/host",
    "nodes/host/model",
    "nodes/host/crop",
    "nodes/host/parallel",
    "nodes/host/upscale",
    "tests/core",
    "tests/host",
    "docs",
    "web/docs/CLEARAttention",
)
GENERATED = re.compile(r"<!-- hooks.*?<!-- end of hooks -->", re.DOTALL)  # held to the code by dev.py check
FILE = re.compile(r"(?<![\w<{/.])((?:[\w-]+/)*[\w-]+\.(?:py|js|json|md|yml|toml))(?![\w>])")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_on_the_page_exists(page):
    named = set(FILE.findall(GENERATED.sub("", (PROJECT / page).read_text(encoding="utf-8"))))
    named = {name for name in named if "X_Y" not in name}  # a name to be filled in
    assert len(named) > 10
    assert [name for name in sorted(named) if not any((PROJECT / root / name).is_file() for root in ROOTS)] == []
