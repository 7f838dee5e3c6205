"""HiFlow's two nodes in the host's own samplers: the published formulas, the record's bounds, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.host.support_comfy.guidance import Calls, hiflow, sample
from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.upscaling import load_extras

SAMPLERS = ("euler", "heun", "euler_ancestral")
SMALL = (8, 12)
LARGE = (16, 24)


def empty(size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, 16, *size)


@pytest.fixture
def record(host, pack):
    """``record(model)`` is the recorded model and its record."""
    return lambda model: run_node(host.stock("CLEARGuideRecord"), model=model)


@pytest.fixture
def align(host, pack):
    """``align(model, record, samples, **widgets)`` is the model that CLEARGuideAlign gives."""

    def apply(model: Any, kept: Any, samples: torch.Tensor, **widgets: Any) -> Any:
        inputs = {"model": model, "record": kept, "latent": {"samples": samples}, **widgets}
        return run_node(host.stock("CLEARGuideAlign"), **inputs)[0]

    return apply


def enlarged(latent: torch.Tensor) -> torch.Tensor:
    return F.interpolate(latent.double(), LARGE, mode="bicubic", align_corners=False)


def every_way() -> list[Any]:
    fast = {("euler", "whole", False), ("heun", "tiles", True), ("euler_ancestral", "batch", False)}
    return [
        pytest.param(*way, marks=() if way in fast else (pytest.mark.slow,))
        for sampler in SAMPLERS
        for how in ("whole", "tiles", "batch")
        for custom in (False, True)
        for way in [(sampler, how, custom)]
    ]


@pytest.mark.parametrize(("sampler", "how", "custom"), every_way())
def test_every_step_is_the_published_one(host, tiny_flux, record, align, in_tiles, sampler, how, custom):
    model, batch = tiny_flux(), 2 if how == "batch" else 1
    recorded, kept = record(model)
    small = Calls()
    low = sample(host, small.around(recorded, lambda one: one), empty(SMALL), custom=custom, sampler=sampler)
    # The last prediction of each noise level: heun asks at one level twice.
    by_sigma = dict(zip(small.sigmas, small.before, strict=True))

    calls = Calls()
    aligned = calls.around(model, lambda one: align(one, kept, low, direction=0.8, acceleration=0.4))
    if how == "tiles":
        aligned = in_tiles(aligned, (8, 12), (6, 8))
    sample(host, aligned, empty(LARGE, batch), custom=custom, sampler=sampler, seed=9)
    references = [enlarged(by_sigma[sigma]).expand(batch, -1, -1, -1) for sigma in calls.sigmas]
    expected = hiflow(calls, references, 0.8, 0.4)
    assert len(expected) >= 4
    for found, wanted, before in zip(calls.after, expected, calls.before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6)
        assert not torch.allclose(found, before, atol=1e-3)


def test_recording_changes_nothing_and_off_is_stock(host, tiny_flux, record, align):
    model = tiny_flux()
    stock = sample(host, model, empty(SMALL))
    recorded, kept = record(model)
    low = sample(host, recorded, empty(SMALL))
    assert torch.equal(low, stock)
    large = sample(host, model, empty(LARGE))
    off = align(model, kept, low, direction=0.0, acceleration=0.0)
    assert torch.equal(sample(host, off, empty(LARGE)), large)
    aligned = align(model, kept, low)
    first = sample(host, aligned, empty(LARGE))
    assert not torch.allclose(first, large, atol=1e-2)
    assert torch.equal(sample(host, aligned, empty(LARGE)), first), "a run leaves nothing for the next"
    assert torch.equal(sample(host, model, empty(LARGE)), large)
    assert "sampler_post_cfg_function" not in model.model_options and not model.wrappers.get("outer_sample")


def test_the_latent_says_which_run_is_meant(host, tiny_flux, record, align):
    model = tiny_flux()
    recorded, kept = record(model)
    lows = [sample(host, recorded, empty(SMALL), seed=seed) for seed in (1, 2)]
    assert len(kept.runs) == 2
    outs = [sample(host, align(model, kept, low), empty(LARGE)) for low in lows]
    assert not torch.allclose(*outs, atol=1e-2)
    alone, only = record(model)
    assert torch.equal(sample(host, alone, empty(SMALL), seed=1), lows[0])
    assert torch.equal(sample(host, align(model, only, lows[0]), empty(LARGE)), outs[0])
    assert torch.equal(sample(host, align(model, kept, lows[0].half()), empty(LARGE)), outs[0]), "rounded by the host"
    with pytest.raises(ValueError, match="latent is not the result of a run that is kept .*2 of them"):
        align(model, kept, lows[0] + 0.5)


def test_later_patches_do_not_part_the_model_from_its_record(host, tiny_flux, record, align, clear_node):
    """Hosts to 0.9 copy the options of a model at every depth for each clone."""
    model = tiny_flux()
    recorded, kept = record(model)
    low = sample(host, clear_node(recorded.clone(), radius=2, backend="gather").clone(), empty(SMALL))
    assert len(kept.runs) == 1 and torch.equal(kept.find(low).result, low)
    aligned = align(model, kept, low)
    assert torch.equal(sample(host, aligned.clone(), empty(LARGE)), sample(host, aligned, empty(LARGE)))


def test_other_sigmas_are_interpolated_and_the_result_stands_at_0(host, tiny_flux, record, align):
    model, calls = tiny_flux(), Calls()
    recorded, kept = record(model)
    small = Calls()
    low = sample(host, small.around(recorded, lambda one: one), empty(SMALL), steps=4)
    by_sigma = {**dict(zip(small.sigmas, small.before, strict=True)), 0.0: model.model.process_latent_in(low).double()}

    def at(sigma: float) -> torch.Tensor:
        below = max(one for one in by_sigma if one <= sigma)
        above = min(one for one in by_sigma if one >= sigma)
        share = 0.0 if above == below else (sigma - below) / (above - below)
        return by_sigma[below] + share * (by_sigma[above] - by_sigma[below])

    sample(host, calls.around(model, lambda one: align(one, kept, low)), empty(LARGE), steps=7)
    assert min(calls.sigmas) < min(small.sigmas)
    expected = hiflow(calls, [enlarged(at(sigma)) for sigma in calls.sigmas], 1.0, 0.5)
    for found, wanted in zip(calls.after, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=3e-6)


def test_a_run_that_began_later_cannot_hold_one_from_pure_noise(host, tiny_flux, record, align):
    model, calls = tiny_flux(), Calls()
    recorded, kept = record(model)
    low = sample(host, recorded, torch.randn(1, 16, *SMALL), denoise=0.5)
    aligned = calls.around(model, lambda one: align(one, kept, low))
    with pytest.raises(ValueError, match="this run goes from sigma 1 to .* but the recorded one from 0"):
        sample(host, aligned, empty(LARGE))
    assert not calls.before
    sample(host, aligned, torch.randn(1, 16, *LARGE), denoise=0.5)
    assert calls.before


def test_other_proportions_are_refused_before_the_model_runs(host, tiny_flux, record, align):
    model, calls = tiny_flux(), Calls()
    recorded, kept = record(model)
    low = sample(host, recorded, empty(SMALL))
    with pytest.raises(ValueError, match="12 x 8 latent cells and this one 24 x 24; expected the same proportions"):
        sample(host, calls.around(model, lambda one: align(one, kept, low)), empty((24, 24)))
    assert not calls.before
    sample(host, align(model, kept, low), empty((17, 25)))


def test_memory_is_bounded_and_shown(host, tiny_flux, record, monkeypatch, pack):
    model = tiny_flux()
    recorded, kept = record(model)
    shown: list[str] = []
    module = __import__("sys").modules[f"{pack.__name__}.nodes.host.guidance.recorder"]
    monkeypatch.setattr(module, "write_on_node", lambda text, node: shown.append(text))
    one = 6 * 16 * SMALL[0] * SMALL[1] * 4
    kept.limit = 2 * one
    for seed in range(3):
        low = sample(host, recorded, empty(SMALL), seed=seed)
    assert len(kept.runs) == 2 and sum(run.size for run in kept.runs) == 2 * one
    assert torch.equal(kept.find(low).result, low)
    assert shown[-1] == "2 runs recorded: 10 predictions, 0.07 MiB of 0.07 MiB of main memory"
    with pytest.raises(ValueError, match="the predictions of 4 steps at 256 x 256 px .* take 0 MiB .*, expected 0"):
        sample(host, recorded, empty((32, 32)))


def test_a_sampler_that_asks_between_the_steps_stays_in_the_limit(host, tiny_flux, record, align):
    """dpm_2 asks twice in a step; a run that was let begin is never refused at its end."""
    model = tiny_flux()
    one = 16 * SMALL[0] * SMALL[1] * 4
    for spare in (0, 1):
        recorded, kept = record(model)
        kept.limit = (4 + 2 + spare) * one
        low = sample(host, recorded, empty(SMALL), sampler="dpm_2")
        run = kept.find(low)
        assert run.size == kept.limit and len(run.predictions) == 4 + 1 + spare
    sample(host, align(model, kept, low), empty(LARGE), sampler="dpm_2")


def test_a_run_that_begins_just_below_pure_noise_can_hold_one_from_it(host, tiny_flux, record, align):
    """dpmpp_sde and its kind begin at 0.9999 of the schedule, which at shift 1 is a sigma of 0.9999."""
    load_extras(host, "nodes_model_advanced.py", "ModelSamplingAuraFlow")
    (model,) = run_node(host.stock("ModelSamplingAuraFlow"), model=tiny_flux(), shift=1.0)
    recorded, kept = record(model)
    low = sample(host, recorded, empty(SMALL), sampler="dpmpp_sde", steps=2)
    assert kept.find(low).sigmas[-1] < 0.99995
    sample(host, align(model, kept, low), empty(LARGE), steps=2)


def test_an_interrupted_run_is_not_kept(host, tiny_flux, record):
    model = tiny_flux()
    recorded, kept = record(model)

    def stop(args: dict[str, Any]) -> torch.Tensor:
        if float(args["sigma"][0]) < 0.6:
            raise KeyboardInterrupt
        return args["denoised"]

    recorded.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(KeyboardInterrupt):
        sample(host, recorded, empty(SMALL))
    assert kept.runs == []


def test_bad_values_are_refused_in_one_sentence(host, tiny_flux, record, align):
    model = tiny_flux()
    recorded, kept = record(model)
    low = sample(host, recorded, empty(SMALL), steps=2)
    for widgets, said in (
        ({"direction": 1.5}, "direction is 1.5; expected a number from 0 to 1"),
        ({"acceleration": float("inf")}, "acceleration is inf; expected a number from 0 to 1"),
        ({"cutoff": 0.0}, "cutoff is 0.0; expected a number from 0.01 to 2"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "expected 0 <= start_percent <= end_percent <= 1"),
    ):
        with pytest.raises(ValueError, match=said):
            align(model, kept, low, **widgets)
