"""The benchmark that the first GPU will run: what it checks, what it skips and what it writes."""

import json
import sys

import pytest
import torch

from benchmarks import flux
from clear_core import ClearSpec, SequenceLayout, clear_attention


@pytest.mark.parametrize("down_factor", [1, 3])
def test_sampled_rows_find_another_window(down_factor):
    layout = SequenceLayout(9, (20, 23))
    q, k, v = torch.randn(3, 1, 3, layout.length, 16, generator=torch.Generator().manual_seed(0)).unbind()
    right, wrong = (
        clear_attention(q, k, v, grid=layout.grid, spec=ClearSpec(radius, down_factor), backend="gather")
        for radius in (5, 6)
    )
    assert flux.sampled_error(right, q, k, v, layout, ClearSpec(5, down_factor)) < 1e-5
    assert flux.sampled_error(wrong, q, k, v, layout, ClearSpec(5, down_factor)) > 1e-2
    right[:, -1, -1] += 1
    assert flux.sampled_error(right, q, k, v, layout, ClearSpec(5, down_factor)) > 1e-2


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(flux, "GRIDS", {"1K": (12, 10), "2K": (90, 90)})
    monkeypatch.setattr(flux, "TEXT", 20)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def run(file, *arguments):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "flux.py",
                "--device",
                "cpu",
                "--dtype",
                "float32",
                "--head-dim",
                "16",
                "--rounds",
                "1",
                "--radius",
                "4",
                "--output",
                str(file),
                *arguments,
            ],
        )
        flux.main()
        return json.loads(file.read_text())

    return run


@pytest.mark.slow
def test_the_record_names_what_ran_and_what_did_not(small, tmp_path, capsys):
    record = small(tmp_path / "record.json", "--sizes", "1K,2K", "--runs", "sdpa,row-major,gather,triton")
    kinds = [result["kind"] for result in record["results"]]
    assert kinds == ["peak", "layer", "step", "layer", "left out"]
    plain, step, pooled, left_out = record["results"][1:]
    assert list(plain["runs"]) == ["sdpa", "row-major", "gather"]
    assert plain["runs"]["gather"]["error"] < 1e-5 and plain["runs"]["gather"]["median_ms"] > 0
    assert set(plain["skipped"]) == {"triton"}
    assert set(pooled["skipped"]) == {"triton", "row-major"} and pooled["down_factor"] == flux.DOWN_FACTOR
    gather = step["runs"]["gather"]
    assert gather["step_ms"] == pytest.approx(19 * gather["double_ms"] + 38 * gather["single_ms"], abs=0.1)
    assert all("2K" in what for what in left_out["what"])
    shown = capsys.readouterr().out
    assert "triton skipped: Triton" in shown and "step at 1K" in shown and "left out: 2K: too long for a CPU" in shown


def test_nothing_is_begun_after_the_time(small, tmp_path):
    record = small(tmp_path / "record.json", "--minutes", "0", "--runs", "sdpa")
    assert [result["kind"] for result in record["results"]] == ["peak", "left out"]
    assert record["results"][1]["what"] == ["layer 1K, radius 4", "layer 1K, radius 4, pooled 4 x 4"]


def test_a_backend_that_breaks_or_is_wrong_is_not_timed(small, tmp_path, monkeypatch):
    def attention(name, layout, spec, device):
        if name == "flex":
            return lambda q, k, v: 1 / 0
        return lambda q, k, v: torch.zeros_like(q)

    monkeypatch.setattr(flux, "skip_reason", lambda *case: None)
    monkeypatch.setattr(flux, "attention", attention)
    layer = small(tmp_path / "record.json", "--runs", "sdpa,flex,triton")["results"][1]
    assert list(layer["runs"]) == ["sdpa"]
    assert layer["skipped"]["flex"] == "ZeroDivisionError: division by zero"
    assert "off by" in layer["skipped"]["triton"]
