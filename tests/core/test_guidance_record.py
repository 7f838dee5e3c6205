"""The record of a low-resolution run: what it gives between its sigmas, whose it is, and how much it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clear_core.guidance import Alignment, GuideSettings, PredictionRecord, RecordedRun, brought_to_size
from clear_core.number_checks import check_percents


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_of(*sigmas: float, seed: int = 0) -> RecordedRun:
    predictions = {sigma: drawn(1, 4, 6, 8, seed=seed + place) for place, sigma in enumerate(sigmas)}
    return RecordedRun(predictions, drawn(1, 4, 6, 8, seed=seed + 90))


def test_recorded_sigmas_are_exact_and_others_lie_between():
    run = run_of(1.0, 0.6, 0.0)
    for sigma, wanted in run.predictions.items():
        assert run.at(sigma) is wanted
    middle = run.at(0.7)
    torch.testing.assert_close(middle, 0.75 * run.predictions[0.6] + 0.25 * run.predictions[1.0])
    assert run.at(1.00001) is run.predictions[1.0]
    assert run_of(1.0, 0.6).at(0.1) is not None


@pytest.mark.parametrize(
    ("sigmas", "highest", "lowest", "fits"),
    [
        ((1.0, 0.5, 0.0), 1.0, 0.01, True),
        ((1.0, 0.5, 0.0), 1.00001, 0.5, True),
        ((0.9999, 0.5, 0.0), 1.0, 0.5, True),
        ((0.8, 0.5, 0.0), 0.9, 0.5, False),
        ((1.0, 0.5), 1.0, 0.4, False),
        ((1.0, 0.5), 1.0, 0.5, True),
    ],
)
def test_sigmas_beyond_the_recorded_ones_are_refused(sigmas, highest, lowest, fits):
    run = run_of(*sigmas)
    if fits:
        run.check_sigmas(highest, lowest)
    else:
        with pytest.raises(ValueError, match=f"from sigma {highest:g} to {lowest:g}, but the recorded one from"):
            run.check_sigmas(highest, lowest)


def test_a_result_finds_its_own_run_only():
    record = PredictionRecord()
    record.runs += [run_of(1.0, 0.0, seed=seed) for seed in (0, 7)]
    for run in record.runs:
        for rounded in (run.result, run.result.half(), run.result.bfloat16(), run.result + 1e-3):
            assert record.find(rounded) is run
    for other in (drawn(1, 4, 6, 8, seed=5), record.runs[0].result[..., :6], torch.zeros(1, 4, 6, 8)):
        with pytest.raises(ValueError, match=r"latent is not the result of a run .*\(2 of them\)"):
            record.find(other)


def test_of_results_that_are_almost_alike_the_nearest_is_taken():
    """As runs of little denoising leave them: nearer to each other than a rounded copy may be."""
    record, first = PredictionRecord(), run_of(1.0, 0.0)
    other = replace(first, result=first.result + 0.005)
    record.runs += [first, other, replace(other)]
    assert record.find(first.result) is first and record.find(first.result.half()) is first
    assert record.find(other.result) is record.runs[-1], "the newest of equal ones"


def test_the_oldest_runs_make_room():
    one = run_of(1.0, 0.0).size
    assert one == (2 + 1) * 4 * 6 * 8 * 4, "two predictions and the result"
    record = PredictionRecord(limit=3 * one)
    for seed in range(4):
        record.make_room(one, "a run")
        record.runs.append(run_of(1.0, 0.0, seed=10 * seed))
    assert len(record.runs) == 3 and torch.equal(record.runs[-1].result, run_of(1.0, 0.0, seed=30).result)
    with pytest.raises(ValueError, match="^a run take"):
        record.make_room(3 * one + 1, "a run")
    assert len(record.runs) == 3, "refused before anything was dropped"


@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (1, 4, 1, 6, 8)], ids=str)
def test_brought_to_size_is_bicubic_on_the_last_axes(shape):
    latent = drawn(*shape)
    wanted = F.interpolate(latent.reshape(-1, 1, 6, 8), (12, 16), mode="bicubic", align_corners=False)
    found = brought_to_size(latent, (12, 16))
    torch.testing.assert_close(found, wanted.reshape(*shape[:-2], 12, 16))
    assert brought_to_size(latent, (6, 8)) is latent
    assert brought_to_size(latent, (50, 67)).shape[-2:] == (50, 67), "rounded to whole cells"
    with pytest.raises(ValueError, match="8 x 6 latent cells and this one 16 x 16; expected the same proportions"):
        brought_to_size(latent, (16, 16))


def test_settings_name_what_is_out_of_range():
    for made, said in (
        (lambda: GuideSettings(strength=2.5), "strength is 2.5; expected a number from 0 to 2"),
        (lambda: GuideSettings(level=9), "level is 9; expected a whole number from 1 to 8"),
        (lambda: GuideSettings(schedule="x"), "schedule is 'x'; expected one of decay, shift, constant"),
        (lambda: Alignment(direction=-0.1), "direction is -0.1; expected a number from 0 to 1"),
        (lambda: Alignment(cutoff=0), "cutoff is 0; expected a number above 0 and up to 2"),
        (lambda: check_percents(0.6, 0.5), "start_percent is 0.6 and end_percent 0.5; expected 0 <= start_percent"),
        (lambda: check_percents(0, 1.5), "end_percent is 1.5; expected a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            made()
