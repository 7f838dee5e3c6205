"""The first run on a card as a command, at small sizes: killed in the middle, gone on with, and refused elsewhere."""

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.first_gpu.__main__ import MINUTES
from benchmarks.first_gpu.plan import plan
from benchmarks.first_gpu.scale import FULL, SMALL

ROOT = Path(__file__).resolve().parents[2]

# A card's machine has torch and Triton, and nothing else that this checkout's environment has.
BARE = """
import importlib.machinery, sys
missing = ("tqdm", "numpy", "safetensors", "huggingface_hub", "PIL", "diffusers", "matplotlib")
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)
sys.meta_path = [Finder if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.first_gpu", "--device", "cpu", "--output", str(tmp_path / "record")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def stored(file):
    return json.loads(file.read_text())


def results_in(file):
    try:
        return len(stored(file)["results"])
    except OSError:  # Not there yet; on Windows also while it is replaced.
        return 0


@pytest.mark.slow
def test_a_killed_run_goes_on_to_its_end_and_nowhere_else(command, tmp_path):
    file = tmp_path / "record.json"
    with command() as first:
        while first.poll() is None and results_in(file) < 6:
            time.sleep(0.05)
        assert first.poll() is None, first.stdout.read()
        first.kill()
        # The process that measures ends with it; until then it holds the other end of this pipe.
        first.stdout.read()
    before = stored(file)["results"]
    assert 6 <= len(before) < len(plan(SMALL))

    with command() as second:
        shown = second.communicate(timeout=600)[0]
    assert second.returncode == 0, shown
    record = stored(file)
    results = record["results"]
    assert f"{len(before)} of them are there already" in shown
    assert {key: results[key] for key in before} == before and list(results)[: len(before)] == list(before)
    assert sorted(results) == sorted(one.key for one in plan(SMALL)) and record["left_out"] == []
    assert record["running"] is None
    failed = {key: one["failed"] for key, one in results.items() if "failed" in one}
    assert not failed
    for one in plan(SMALL):
        assert results[one.key]["section"] == one.section and results[one.key]["line"]
    assert all(results[f"exact {name} float16"]["exact"] for name in ("dense", "gather"))
    assert "Triton" in results["exact triton float16"]["reason"]
    assert results["4K, other libraries"]["skipped"]["natten"] == "natten is not installed"
    assert results["4K, radius 4"]["runs"]["gather"]["keys_per_query"] > 20
    assert "Keep" in shown and "A rehearsal" in shown
    page = (tmp_path / "record.md").read_text(encoding="utf-8")
    assert "A rehearsal" in page and "published by NATTEN" in page and "keys per query" in page
    ElementTree.fromstring((tmp_path / "record.svg").read_text(encoding="utf-8"))

    record["identity"]["torch"] = "1.0"
    file.write_text(json.dumps(record))
    with command() as third:
        shown = third.communicate(timeout=60)[0]
    assert third.returncode == 2
    assert shown.strip().endswith("choose another --output.") and shown.strip().count("\n") == 0
    assert "another torch (1.0, and here it is" in shown
    assert stored(file) == record


@pytest.mark.parametrize("scale", [FULL, SMALL], ids=["full", "small"])
def test_every_measurement_has_a_name_of_its_own_and_the_sections_stand_in_order(scale):
    listed = plan(scale)
    assert len({one.key for one in listed}) == len(listed)
    sections = list(dict.fromkeys(one.section for one in listed))
    assert len(sections) == 8 and sections[:2] == ["Exactness", "One layer"] and sections[-1] == "Peak memory"
    later = [one.later for one in listed]
    assert later == sorted(later)


def test_what_decides_fits_the_time_by_its_own_estimate():
    assert sum(one.expected for one in plan(FULL) if not one.later) < 60 * MINUTES
