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


def runs_of(key: str) -> dict[str, dict[str, float]]:
    record = json.loads((RECORDS / "h100.json").read_text(encoding="utf-8"))
    return record["results"][key]["runs"]


@pytest.mark.parametrize(("size", "name"), [("1024", "1K"), ("2048", "2K"), ("4096", "4K"), ("8192", "8K")])
def test_measured_figures_are_their_records(size, name):
    dense = runs_of(f"{name}, dense")["sdpa"]["median_ms"]
    windows = runs_of(f"{name}, radius 16")["triton"]["median_ms"]
    first, second, ratio = map(float, re.findall(r"[\d.]+", row_of(size)[2]))
    expected = (dense, windows, dense / windows)
    # Thousands of milliseconds are not rounded to hundreds.
    assert (first, second, ratio) == tuple(float(f"{one:.{4 if one > 1000 else 2}g}") for one in expected)


@pytest.mark.parametrize(("size", "name"), [("2048", "2K"), ("4096", "4K")])
def test_measured_steps_are_their_records(size, name):
    runs = runs_of(f"{name}, radius 16, step")
    dense, windows = (runs[one]["step_ms"] / 1e3 for one in ("sdpa", "triton"))
    found = tuple(map(float, re.findall(r"[\d.]+", row_of(size)[3])))
    assert found == tuple(float(f"{one:.2g}") for one in (dense, windows, dense / windows))


def test_the_factors_without_triton_are_their_records():
    given = re.search(r"2K is ([\d.]+) times\s+and 4K ([\d.]+) times", README)
    assert given
    for name, factor in zip(("2K", "4K"), given.groups(), strict=True):
        dense = runs_of(f"{name}, dense")["sdpa"]["median_ms"]
        assert float(factor) == float(f"{dense / runs_of(f'{name}, radius 16')['gather']['median_ms']:.2g}")


def test_the_memory_of_the_largest_picture_is_the_calculated_one():
    peak = CallMemory().peak_bytes((8192 // 16) ** 2) / GIB
    assert f"8192 x 8192 takes {peak:.1f} GiB" in README


def test_the_table_of_weights_is_the_catalogue():
    section = README.split("## Which weights")[1].split("\n## ")[0]
    assert set(re.findall(r"`(clear_local_\w+)`", section)) == set(CATALOGUE)


def test_the_named_templates_exist():
    named = re.findall(r"\*(clear_\w+)\*", README)
    assert named and all((PROJECT / "example_workflows" / f"{name}.json").is_file() for name in named)


def test_what_it_says_of_guidance_is_the_record():
    record = json.loads((PROJECT / "demo" / "experiments" / "guidance.json").read_text(encoding="utf-8"))["beyond"]
    surplus = {row["method"]: row["surplus"] for row in record["rows"]}
    times, said = re.search(
        r"at (\d+)\s+times the first picture's side, enlarging alone added ([\d.]+) surplus", README
    ).groups()
    assert int(times) * 256 == record["side"]
    assert float(said) == surplus["SDEdit 0.5"] and surplus["SDEdit 0.5, shift, level 1"] == 0
    assert "up to 4096 px in one piece" in " ".join(README.split())


def test_what_it_says_of_training_free_windows_is_the_record():
    record = json.loads((PROJECT / "demo" / "experiments" / "hybrid.json").read_text(encoding="utf-8"))
    rows = next(one["rows"] for one in record["settings"] if one["setting"] == "512 px from noise")
    rows = {row["plan"]: row for row in rows}
    share, hybrid, of_circles, *circles = re.search(
        r"with radius 4 and (\d+) % of dense attention's pairs, its pictures came to a PSNR of ([\d.]+) dB against "
        r"dense attention's own; the circles alone, with (\d+) % of the pairs, to ([\d.]+) dB, "
        r"and distilled to ([\d.]+) dB",
        " ".join(README.split()),
    ).groups()
    plans = ("radius 4, overview 4", "radius 4", "radius 4, distilled")
    assert [share, of_circles, of_circles] == [f"{100 * rows[plan]['share']:.0f}" for plan in plans]
    psnr = [hybrid, *circles]
    assert psnr == [f"{sum(rows[plan]['psnr']) / len(rows[plan]['psnr']):.1f}" for plan in plans]
