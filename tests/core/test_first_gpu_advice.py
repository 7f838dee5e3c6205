"""What the first run on a card concludes from its figures, here planted ones, and how it shows them."""

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.first_gpu import chunks, exactness, layers
from benchmarks.first_gpu.advice import advice
from benchmarks.first_gpu.journal import Journal
from benchmarks.first_gpu.report import write_report
from benchmarks.first_gpu.scale import MIB


def run(took, **more):
    shared = {"first_ms": 900.0, "call_ms": took, "error": 1e-3, "share_of_peak": 0.4, "keys_per_query": 1300.0}
    return {"median_ms": took, **shared, **more}


def layer(size, times, radius=16, down_factor=1, auto="flex"):
    return {
        "section": layers.SECTION,
        "size": size,
        "grid": [64, 64],
        "radius": radius,
        "down_factor": down_factor,
        "auto": auto,
        "runs": {name: run(took) for name, took in times.items()},
        "skipped": {},
        "line": "",
    }


def exact(backend, error=1e-3, dtype="bfloat16"):
    about = {"backend": backend, "dtype": dtype, "tolerance": 1e-2, "errors": {"a": error}}
    return {"section": exactness.SECTION, **about, "error": error, "exact": error <= 1e-2, "line": ""}


def the(results, part):
    [found] = [one for one in advice(results) if part in one.place]
    return found


def test_auto_takes_what_is_faster_at_every_layer():
    results = {
        "a": exact("flex"),
        "b": exact("triton"),
        "c": layer("4K", {"flex": 12.0, "triton": 8.0, "gather": 30.0}),
        "d": layer("2K", {"flex": 3.0, "triton": 2.4, "gather": 7.0}),
    }
    found = the(results, "`auto`")
    assert found.changes and (found.now, found.better) == ("flex", "triton")
    assert "1.37 times as fast as flex on average of 2 layers, at worst 1.25 times (2K, radius 16)" in found.reason
    assert str(found).startswith("Change what `auto` takes") and advice(results)[0] == found


@pytest.mark.parametrize(
    "triton, wrong",
    [({"4K": 11.8, "2K": 2.95}, 1e-3), ({"4K": 8.0, "2K": 2.4}, 0.5), ({"4K": 8.0}, 1e-3)],
    ids=["hardly faster", "not exact", "not everywhere"],
)
def test_auto_stays_with_what_it_has(triton, wrong):
    results = {"a": exact("flex"), "b": exact("triton", wrong)}
    for size, took in (("4K", 12.0), ("2K", 3.0)):
        more = {"triton": triton[size]} if size in triton else {}
        results[size] = layer(size, {"flex": took, "gather": 3 * took, **more})
    found = the(results, "`auto`")
    assert not found.changes and found.now == "flex" and str(found).startswith("Keep what `auto` takes")
    assert any("triton" in one.place and one.changes for one in advice(results)) == (wrong > 1e-2)


def test_auto_leaves_a_backend_that_is_wrong_also_for_a_slower_one():
    results = {"a": exact("flex", 0.3), "b": exact("gather"), "c": layer("4K", {"flex": 12.0, "gather": 30.0})}
    assert the(results, "`auto`").better == "gather"
    assert "off by 0.3 where 0.01 is allowed" in the(results, "`unavailable`").reason


@pytest.mark.parametrize(
    "times, better",
    [({64: 20.0, 256: 15.0, 1024: 14.9}, 256), ({64: 15.0, 256: 20.0, 1024: 14.9}, 64), ({64: 20.0, 1024: 9.0}, 1024)],
)
def test_the_chunk_budget_is_the_smallest_of_the_fast_ones(times, better):
    budgets = {f"gather, {number} MiB": number * MIB for number in times}
    runs = {f"gather, {number} MiB": run(took) for number, took in times.items()}
    one = {"budgets": budgets, "default_bytes": 256 * MIB, "constant": "_ELSEWHERE", "runs": runs}
    found = the({"a": one}, "budget.py")
    assert (found.now, found.better) == ("256 MiB", f"{better} MiB") and "`_ELSEWHERE`" in found.place
    assert "64 MiB" in found.reason and "1024 MiB" in found.reason


def test_query_tiles_and_block_shapes_follow_their_times():
    tiles = {"a": (16, 32), "b": (32, 32)}
    one = {"tiles": tiles, "default_tile": (16, 32), "radius": 16, "runs": {"a": run(9.0), "b": run(6.0)}}
    found = the({"a": one}, "`query_tile` for radius 16")
    assert (found.now, found.better, found.reason) == ("16 x 32", "32 x 32", "16 x 32 9 ms, 32 x 32 6 ms")
    one["runs"]["b"] = run(8.9)
    assert not the({"a": one}, "`query_tile`").changes
    shapes = {"written": ["128x64", "64x64", "128x32"], "size": "4K", "runs": {"128x64": run(7.0), "64x64": run(5.0)}}
    found = the({"a": shapes}, "`candidate_shapes`")
    assert (found.now, found.better) == ("128x64", "64x64") and "at 4K 64x64 5 ms; 128x64 7 ms" in found.reason


@pytest.mark.parametrize("without, better", [(6.0, "not allowed"), (8.1, "allowed")])
def test_cudnn_is_judged_by_the_same_call_without_it(without, better):
    runs = {f"gather, {chunks.USUAL}": run(8.0), f"gather, {chunks.WITHOUT_CUDNN}": run(without)}
    assert the({"a": {"runs": runs}}, "cuDNN").better == better


def test_planned_memory_follows_the_largest_grid():
    def memory(grid, **states):
        hidden = grid[0] * grid[1] * 6144
        runs = {name: {"states": one, "peak_bytes": 1} for name, one in states.items()}
        return {"planned": 5, "grid": grid, "hidden_bytes": hidden, "runs": runs}

    small, large = memory([64, 64], gather=9.5), memory([256, 256], gather=1.6, flex=5.2)
    found = the({"a": small, "b": large}, "`ENGINE_COPIES`")
    assert (found.now, found.better) == ("4", "5") and "above the plan: gather 9.5 at 64 x 64" in found.reason
    assert not the({"a": memory([64, 64], flex=4.8)}, "`ENGINE_COPIES`").changes
    assert advice({"a": memory([64, 64], flex=None)}) == []


def test_nothing_is_said_without_figures(tmp_path):
    assert advice({}) == [] and advice({"a": {"section": "", "failed": "it crashed"}}) == []
    journal = Journal(tmp_path / "record.json")
    journal.begin({"device": "a card", "kind of run": "full"})
    journal.left_out = ["4K, radius 16"]
    shown = write_report(journal)
    assert "No constant can be judged" in shown and "Left out for lack of time: 4K, radius 16." in shown
    ElementTree.fromstring((tmp_path / "record.svg").read_text(encoding="utf-8"))


def test_page_and_chart_show_every_figure_with_its_keys(tmp_path):
    journal = Journal(tmp_path / "record.json")
    journal.begin({"device": "H<100>", "torch": "2.9", "revision": "abc", "kind of run": "full"})
    dense = {**layer("4K", {"sdpa, cuDNN": 97.0}), "radius": None, "down_factor": None}
    dense["skipped"] = {"sdpa, flash": "it | broke"}
    journal.results = {
        "a": exact("flex"),
        "b": exact("triton", 0.5),
        "c": layer("4K", {"flex": 8.0, "triton": 7.0}, down_factor=4),
        "d": dense,
        "e": {"section": layers.SECTION, "failed": "it crashed"},
    }
    shown = write_report(journal)
    page, picture = ((tmp_path / f"record.{kind}").read_text(encoding="utf-8") for kind in ("md", "svg"))
    assert "| 4K, radius 16, pooled 4 x 4 (64 x 64) | flex | 1300 | 8 | 900 | 40.0% | 1.0e-03 |" in page
    assert "**WRONG**" in page and "- sdpa, flash: it | broke (d)" in page and "- e: it crashed" in page
    assert "published by NATTEN" in page and "| 80 x 80 window | 6400 | 18.6 |" in page
    assert "A rehearsal" not in page + shown + picture
    drawn = "".join(ElementTree.fromstring(picture).itertext())
    assert "flex [1300]" in drawn and "80 x 80 window [6400]" in drawn and "not measured here" in drawn
    assert "H<100>" in drawn
