"""The quality experiments: their measures, and the committed windows against their record."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import ClearSpec
from clear_core.weights import read_clear_file
from demo.experiments.measure import judge, layout, psnr, set_bench, ssim, windowed
from demo.experiments.quality import RECORD, SIDES
from demo.experiments.quality_table import tables
from demo.experiments.windows import SPECS, WINDOWS, window_file
from demo.tiny_flux.evaluate import caption_match
from demo.tiny_flux.weights import load_tiny_flux, model_fingerprint

COMMITTED = [spec for spec in SPECS if window_file(spec).exists()]


def test_psnr_and_layout_of_known_pictures():
    wanted = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert psnr(wanted + 0.1, wanted) == pytest.approx(20, abs=1e-4)
    assert layout(wanted, wanted) == pytest.approx(1, abs=1e-5)
    assert layout(1 - wanted, wanted) == pytest.approx(-1, abs=1e-5)
    mirrored = torch.linspace(0, 1, 96).expand(3, 64, 96)
    assert layout(mirrored.flip(2), mirrored) < -0.9


def two_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.rand(3, 12, 15, generator=generator)
    return (wanted + 0.2 * torch.randn(wanted.shape, generator=generator)).clamp(0, 1), wanted


def test_ssim_by_its_definition():
    """Window by window in float64: Wang et al. 2004, equation 13, with sample variances."""
    image, reference = two_pictures()
    found: list[float] = []
    for colour in range(3):
        for y in range(12 - 6):
            for x in range(15 - 6):
                a, b = (each[colour, y : y + 7, x : x + 7].double().flatten() for each in (image, reference))
                (aa, ab), (_, bb) = torch.cov(torch.stack([a, b])).tolist()
                ma, mb = a.mean().item(), b.mean().item()
                found.append((2 * ma * mb + 1e-4) * (2 * ab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (aa + bb + 9e-4)))
    assert ssim(image, reference) == pytest.approx(sum(found) / len(found), abs=1e-9)
    assert ssim(image, image) == pytest.approx(1, abs=1e-9)
    assert 0.3 < ssim(image, reference) < 0.95


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


def recorded() -> dict[tuple[int, int, int, bool], float]:
    """Mean errors of the record by side, radius, down factor and whether the weights are distilled."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    return {(row["side"], row["radius"], row["down_factor"], row["distilled"]): row["mean_mse"] for row in rows}


def test_distilled_windows_are_nearer_and_no_worse_than_recorded():
    """The experiments in small: fewer scenes than the record's, so twice its error is allowed."""
    record, side = recorded(), SIDES[0]
    bench = set_bench(load_tiny_flux(), scenes=2, pictures=0, size=(side, side))
    for spec in COMMITTED:
        before = judge(bench, windowed(spec)).mean_mse
        after = judge(bench, windowed(spec, window_file(spec))).mean_mse
        wanted = record[side, spec.radius, spec.down_factor, True]
        print(f"{spec}: {before:.2e} -> {after:.2e}, recorded {wanted:.2e}")
        assert after < before
        assert after < 2 * wanted


def test_the_record_is_of_the_committed_model_and_has_every_window_before_and_after_at_both_sizes():
    assert json.loads(RECORD.read_text(encoding="utf-8"))["model"] == model_fingerprint()
    errors = recorded()
    assert set(errors) == {
        (side, spec.radius, spec.down_factor, distilled)
        for side in SIDES
        for spec in SPECS
        for distilled in (False, True)
    }
    for side in SIDES:
        for spec in SPECS:
            own, distilled = (errors[side, spec.radius, spec.down_factor, done] for done in (False, True))
            assert distilled < own, f"{spec} at {side} px"


def test_a_rows_cells_are_those_of_the_record():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    shown = tables(record).splitlines()
    assert sum(line.startswith("| radius") for line in shown) == len(record["rows"])
    row = record["rows"][1]
    (line,) = (one for one in shown if f" {1000 * row['mean_mse']:.2f} | {row['psnr']:.1f} |" in one)
    assert line.startswith(f"| radius {row['radius']} | distilled |")
