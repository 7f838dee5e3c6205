"""The quality experiments: their measures, and the committed windows against their record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import ClearSpec
from clear_core.weights import read_clear_file
from demo.experiments.__main__ import RECORD, markdown
from demo.experiments.measure import judge, layout, psnr, set_bench, windowed
from demo.experiments.windows import SPECS, WINDOWS, window_file
from demo.tiny_flux.evaluate import caption_match
from demo.tiny_flux.weights import load_tiny_flux

COMMITTED = [spec for spec in SPECS if window_file(spec).exists()]


def test_psnr_and_layout_of_known_pictures():
    wanted = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert psnr(wanted + 0.1, wanted) == pytest.approx(20, abs=1e-4)
    assert layout(wanted, wanted) == pytest.approx(1, abs=1e-5)
    assert layout(1 - wanted, wanted) == pytest.approx(-1, abs=1e-5)
    mirrored = torch.linspace(0, 1, 96).expand(3, 64, 96)
    assert layout(mirrored.flip(2), mirrored) < -0.9


def test_every_judged_window_is_there():
    assert {(s.radius, s.down_factor) for s in SPECS} == {(r, d) for r in (4, 8, 16) for d in (1, 4)}
    assert ClearSpec(8) in COMMITTED, "the demo's own"
    assert {path.name for path in WINDOWS.glob("*.safetensors")} == {window_file(spec).name for spec in COMMITTED}


@pytest.mark.parametrize("spec", COMMITTED, ids=str)
def test_committed_windows_say_where_they_come_from(spec: ClearSpec):
    file = read_clear_file(window_file(spec))
    file.check_finite()
    assert (file.radius, file.down_factor, file.width) == (spec.radius, spec.down_factor, 256)
    assert "tiny FLUX" in file.source and str(spec) in file.source


def test_tiny_flux_tells_captions_apart():
    from demo.tiny_flux.data import held_out_scenes

    assert caption_match(load_tiny_flux(), held_out_scenes(8), (256, 256)) == 1.0


def test_distilled_windows_are_nearer_and_no_worse_than_recorded():
    """The experiments in small: fewer scenes than the record's, so twice its error is allowed."""
    record = {
        (row["radius"], row["down_factor"], row["distilled"]): row["mean_mse"]
        for row in json.loads(RECORD.read_text())["rows"]
    }
    bench = set_bench(load_tiny_flux(), scenes=2, pictures=0)
    for spec in COMMITTED:
        before = judge(bench, windowed(spec)).mean_mse
        after = judge(bench, windowed(spec, window_file(spec))).mean_mse
        print(f"{spec}: {before:.2e} -> {after:.2e}, recorded {record[spec.radius, spec.down_factor, True]:.2e}")
        assert after < before
        assert after < 2 * record[spec.radius, spec.down_factor, True]


def test_the_record_has_every_window_before_and_after_on_a_large_grid():
    record = json.loads(RECORD.read_text())
    assert min(record["grid"]) >= 32
    errors = {(row["radius"], row["down_factor"], row["distilled"]): row["mean_mse"] for row in record["rows"]}
    for spec in SPECS:
        assert errors[spec.radius, spec.down_factor, True] < errors[spec.radius, spec.down_factor, False]


def test_the_docs_show_the_record():
    docs = Path(__file__).resolve().parents[2] / "demo" / "experiments" / "README.md"
    assert markdown(json.loads(RECORD.read_text())) in docs.read_text()
