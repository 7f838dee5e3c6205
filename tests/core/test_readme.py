"""What the README promises: commands that exist, figures from their records, the files of the catalogue."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from clear_core.call_memory import CallMemory
from clear_core.memory import GIB
from clear_core.weights.catalogue import CATALOGUE

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
RECORDS = PROJECT / "benchmarks" / "records"


def row_of(size: str) -> list[str]:
    """Cells of the row on a picture's size in the table of what to expect."""
    (line,) = re.findall(rf"^\| {size} x {size} \|.*$", README, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("command", ["demo", "test"])
def test_the_two_commands_stand_alone_on_their_lines(command):
    assert re.search(rf"^    python3 dev\.py {command}$", README, re.MULTILINE)
    assert command in importlib.import_module("dev").COMMANDS


@pytest.mark.parametrize(("size", "record"), [("1024", "cpu_1k"), ("2048", "cpu_2k"), ("4096", "cpu_4k")])
def test_measured_figures_are_their_records(size, record):
    results = json.loads((RECORDS / f"{record}.json").read_text(encoding="utf-8"))["results"]
    (runs,) = [result["runs"] for result in results if result["radius"] == 16]
    fastest = max(run["speed_up"] for run in runs.values())
    assert float(row_of(size)[-1].split()[0]) == float(f"{fastest:.2g}")


def test_the_memory_of_the_largest_picture_is_the_calculated_one():
    peak = CallMemory().peak_bytes((8192 // 16) ** 2) / GIB
    assert f"8192 x 8192 takes {peak:.1f} GiB" in README


def test_the_table_of_weights_is_the_catalogue():
    section = README.split("## Which weights")[1].split("\n## ")[0]
    assert set(re.findall(r"`(clear_local_\w+)`", section)) == set(CATALOGUE)


def test_the_named_templates_exist():
    named = re.findall(r"\*(clear_\w+)\*", README)
    assert named and all((PROJECT / "example_workflows" / f"{name}.json").is_file() for name in named)
