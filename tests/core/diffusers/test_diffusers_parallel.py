"""CLEAR in a diffusers FLUX on several processes: the result of one, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers.hooks.tensor_parallel", reason="context parallelism came earlier, its mesh later")

import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from clear_core.parallel.__main__ import main
from tests.support import PROJECT
from tests.support.diffusers_flux import relative, run
from tests.support.flux_ranks import FluxCase, run_flux_ranks, small_flux


def equal_cases(ranks: int) -> dict[str, FluxCase]:
    """Names say what is special."""
    strips, heads = FluxCase("strips", (4 * ranks, 7)), FluxCase("heads", (4 * ranks, 7))
    stretched: dict[str, Any] = {"native": 16, "settings": {"ntk": "fading"}}
    pooled: dict[str, Any] = {"spec": ClearSpec(3, 4), "batch": 2, "control": True}
    # Of the image gloo gathers even parts only.
    uneven: dict[str, Any] = {"grid": (4, 9), "text": 7, "config": {"ulysses_anything": True}}
    cases = {
        "strips": strips,
        "strips, text of any length": replace(strips, text=5),
        "strips, wide windows, scaled": replace(strips, spec=ClearSpec(7), settings={"proportional_attention": "on"}),
        "strips, stretched": replace(strips, **stretched),
        "strips, pooled, controlled, two pictures": replace(strips, **pooled),
        "heads": heads,
        "heads, scaled": replace(heads, settings={"proportional_attention": "on"}),
        "heads, diffusers' own plan": replace(heads, stock_plan=True),
        "heads, enabled first": replace(heads, enabled_first=True),
        "heads, stretched": replace(heads, **stretched),
        "heads, pooled, controlled, two pictures": replace(heads, **pooled),
        "heads, references": replace(heads, reference=2 * ranks),
        "heads, uneven": replace(heads, **uneven, native=16, settings={"ntk_factor": 3.0}),
    }
    cases["tensor"] = FluxCase("tensor", (5, 9), text=7, batch=2, spec=ClearSpec(3, 4))
    cases["tensor, enabled first"] = replace(cases["tensor"], enabled_first=True)
    return cases


def refused_cases() -> dict[str, tuple[FluxCase, str]]:
    """For two processes."""
    return {
        "applied for one": (FluxCase(None, stock_plan=True), "CLEAR was applied for one process; apply it with par"),
        "another plan": (FluxCase("strips", stock_plan=True), "by another plan than parallel='strips' needs"),
        "ring": (FluxCase("heads", config={"ring_degree": 2}), "a ring_degree of 2, which CLEAR does not take"),
        "odd rows": (
            FluxCase("strips", (5, 6)),
            r"a grid of 5 x 6 tokens cannot be cut into 2 equal strips; choose a height of a multiple of 32 pixels, .*",
        ),
        "cut cells": (
            FluxCase("strips", (12, 6), spec=ClearSpec(3, 4)),
            "12 x 6 tokens cannot .* rows are multiples of the down factor 4; choose .* multiple of 128 pixels",
        ),
        "references": (FluxCase("strips", reference=4), "does not take the 4 reference tokens"),
        "odd text": (FluxCase("heads", text=7), "7 text tokens and 48 image tokens cannot both be cut into 2 equal"),
    }


def check_equal(cases: dict[str, FluxCase], reports: list[dict[str, Any]]) -> None:
    """Every process has the whole result of one process, and after CLEAR the stock model's."""
    for name, case in cases.items():
        expected = case.alone()
        stock = run(small_flux(), case.inputs())
        assert relative(expected, stock) > 1e-4, f"{name}: windows do nothing"
        if case.native:
            assert relative(expected, replace(case, native=0, settings={}).alone()) > 1e-4, f"{name}: the base is not"
        for report in reports:
            assert not isinstance(report[name], str), f"{name}: {report[name]}"
            assert relative(report[name].result, expected) < 1e-6, name
            assert relative(report[name].after, stock) < 1e-6, name
        assert sum(report[name].bytes_sent for report in reports) == case.traffic(len(reports)), name


def test_two_processes(tmp_path: Path) -> None:
    """The whole FLUX, and all refusals, which name no process and cost the group nothing."""
    equal, refused = equal_cases(2), refused_cases()
    cases = {**{f"refused: {name}": case for name, (case, _) in refused.items()}, **equal}
    reports = run_flux_ranks(cases, 2, tmp_path)
    check_equal(equal, reports)
    for name, (_, sentence) in refused.items():
        for report in reports:
            said = report[f"refused: {name}"]
            assert isinstance(said, str), f"{name} was not refused"
            assert re.search(sentence, said), said


@pytest.mark.slow
def test_four_processes(tmp_path: Path) -> None:
    cases = equal_cases(4)
    check_equal(cases, run_flux_ranks(cases, 4, tmp_path))


def test_one_process_needs_nothing(flux: Any) -> None:
    """A way alone changes nothing until diffusers cuts the sequence."""
    case = FluxCase("strips")
    with apply_clear(flux, ClearSpec(3), parallel="strips") as handle:
        assert set(handle.cp_plan or {}) == {"", "proj_out"}
        found = run(flux, case.inputs())
    assert handle.parallel.peers is None
    with apply_clear(flux, ClearSpec(3)) as handle:
        assert handle.cp_plan is None
        assert torch.equal(run(flux, case.inputs()), found)


def test_refuses_another_way(flux: Any) -> None:
    wrong: Any = "ring"
    stock = dict(flux.attn_processors)
    with pytest.raises(ValueError, match="parallel is 'ring'; expected None, 'strips' or 'heads'"):
        apply_clear(flux, ClearSpec(3), parallel=wrong)
    assert flux.attn_processors == stock


@pytest.mark.parametrize(
    ("way", "ranks"),
    [
        pytest.param("strips", 2, marks=pytest.mark.slow),
        pytest.param("strips", 4, marks=pytest.mark.slow),
        pytest.param("heads", 4, marks=pytest.mark.slow),
    ],
)
def test_command(way: str, ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "clear_core.parallel"]
    options = ["--parallel", way, "--height=256", "--width=192", "--steps=1", "--check"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *options], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(
        rf"{ranks} processes on cpu, {way}: 192 x 256 px, 1 steps in [\d.]+ s; attention sent (?!0\.00)[\d.]+ MB", first
    )
    assert re.fullmatch(r"one process: [\d.]+ s; largest difference [\d.e+-]+ of the largest element", second)


def test_command_alone_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "start them by: python -m torch.distributed.run --nproc-per-node=2 -m clear_core.parallel" in said
