"""CLEARGuide in the host's own samplers: the published formulas, no trace, and refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.host.support_comfy.guidance import Calls, block_means, imax, sample
from tests.host.support_comfy.sampling import run_node

SCHEDULES = ("decay", "shift", "constant")
SAMPLERS = ("euler", "heun", "euler_ancestral")


def drawn(height: int, width: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def guide(host, pack):
    """``guide(model, samples, **widgets)`` is the model that CLEARGuide gives."""

    def apply(model: Any, samples: torch.Tensor, **widgets: Any) -> Any:
        return run_node(host.stock("CLEARGuide"), model=model, guide={"samples": samples}, **widgets)[0]

    return apply


def in_model_space(model: Any, samples: torch.Tensor) -> torch.Tensor:
    return model.model.process_latent_in(samples).double()


def check(calls: Calls, expected: list[torch.Tensor]) -> None:
    assert len(calls.after) == len(expected) >= 4
    for found, wanted in zip(calls.after, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(calls.after[0], calls.before[0], atol=1e-3), "something was guided"


def every_way() -> list[Any]:
    """All ways to sample; one in six is in the fast set, which has each pair of sampler and schedule."""
    ways = [(a, b) for a in ("whole", "tiles", "batch") for b in (False, True)]
    cases = []
    for place, (sampler, schedule) in enumerate(itertools.product(SAMPLERS, SCHEDULES)):
        for index, (how, custom) in enumerate(ways):
            name = f"{sampler}-{schedule}-{how}-{'SamplerCustomAdvanced' if custom else 'KSampler'}"
            marks = () if index == place % len(ways) else (pytest.mark.slow,)
            cases.append(pytest.param(sampler, schedule, custom, how, id=name, marks=marks))
    return cases


@pytest.mark.parametrize(("sampler", "schedule", "custom", "how"), every_way())
def test_every_step_is_the_published_one(host, tiny_flux, guide, in_tiles, sampler, schedule, custom, how):
    model, batch = tiny_flux(), 2 if how == "batch" else 1
    samples, latent, calls = drawn(20, 24), torch.zeros(batch, 16, 20, 24), Calls()
    guided = calls.around(model, lambda one: guide(one, samples, schedule=schedule, level=2))
    if how == "tiles":
        guided = in_tiles(guided, (10, 12), (6, 8))
    sample(host, guided, latent, custom=custom, sampler=sampler)
    assert calls.before[0].shape[0] == batch
    check(calls, imax(calls, in_model_space(model, samples), schedule, 2))


def test_constant_leaves_the_guides_coarse_parts_exactly(host, tiny_flux, guide):
    model, samples = tiny_flux(), drawn(16, 24)
    out = sample(host, guide(model, samples, schedule="constant"), torch.zeros(1, 16, 16, 24))
    torch.testing.assert_close(block_means(out, 1), block_means(samples, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_nothing_is_stock_and_nothing_stays_behind(host, tiny_flux, guide, sampler):
    model, samples, latent = tiny_flux(), drawn(16, 16), torch.zeros(1, 16, 16, 16)
    before = sample(host, model, latent, sampler=sampler)
    assert torch.equal(sample(host, guide(model, samples, strength=0.0), latent, sampler=sampler), before)
    guided = guide(model, samples)
    first = sample(host, guided, latent, sampler=sampler)
    assert not torch.allclose(first, before, atol=1e-2)
    assert torch.equal(sample(host, guided, latent, sampler=sampler), first), "a run leaves nothing for the next"
    assert torch.equal(sample(host, model, latent, sampler=sampler), before), "the model itself is as it was"
    assert "sampler_post_cfg_function" not in model.model_options and not model.wrappers.get("outer_sample")


def test_percents_cut_the_run_and_leave_the_schedule_as_it_is(host, tiny_flux, guide):
    model, samples, calls = tiny_flux(), drawn(16, 16), Calls()
    guided = calls.around(model, lambda one: guide(one, samples, schedule="decay", start_percent=0.2, end_percent=0.6))
    sample(host, guided, torch.zeros(1, 16, 16, 16), steps=6)
    wanted = imax(calls, in_model_space(model, samples), "decay", 1)
    inside = [not torch.equal(a, b) for a, b in zip(calls.after, calls.before, strict=True)]
    sampling = model.model.model_sampling
    most, least = sampling.percent_to_sigma(0.2), sampling.percent_to_sigma(0.6)
    assert inside == [least <= sigma <= most for sigma in calls.sigmas] and 0 < sum(inside) < 6
    for found, expected, guided_here in zip(calls.after, wanted, inside, strict=True):
        if guided_here:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_part_of_a_schedule_is_a_run_of_its_own(host, tiny_flux, guide):
    """At denoise 0.5 the first step of the run is the schedule's first."""
    model, samples, calls = tiny_flux(), drawn(16, 16), Calls()
    sample(
        host, calls.around(model, lambda one: guide(one, samples, schedule="decay")), drawn(16, 16, seed=4), denoise=0.5
    )
    assert calls.steps[0] < 0.95
    check(calls, imax(calls, in_model_space(model, samples), "decay", 1))


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_it_stands_before_or_behind_the_windows(host, tiny_flux, guide, clear_node, behind):
    model, samples, latent = tiny_flux(), drawn(24, 24), torch.zeros(1, 16, 24, 24)
    windows = {"radius": 3, "backend": "gather"}
    both = guide(clear_node(model, **windows), samples) if behind else clear_node(guide(model, samples), **windows)
    calls = Calls()
    plain = clear_node(model, **windows)
    expected = sample(host, calls.around(plain, lambda one: guide(one, samples)), latent)
    assert torch.equal(sample(host, both, latent), expected)
    assert not torch.allclose(expected, sample(host, plain, latent), atol=1e-2)


def test_cfg_is_applied_first(host, tiny_flux, guide):
    model, samples, calls = tiny_flux(), drawn(16, 16), Calls()
    guided = calls.around(model, lambda one: guide(one, samples, schedule="shift"))
    plain = Calls()
    sample(host, plain.around(model, lambda one: one), torch.zeros(1, 16, 16, 16), cfg=3.0)
    sample(host, guided, torch.zeros(1, 16, 16, 16), cfg=3.0)
    torch.testing.assert_close(calls.before[0], plain.before[0])
    check(calls, imax(calls, in_model_space(model, samples), "shift", 1))


def test_a_batch_repeats_a_guide_as_the_host_does(host, tiny_flux, guide):
    model, calls = tiny_flux(), Calls()
    samples = drawn(16, 16, batch=2)
    sample(host, calls.around(model, lambda one: guide(one, samples, schedule="decay")), torch.zeros(3, 16, 16, 16))
    check(calls, imax(calls, in_model_space(model, samples[[0, 1, 0]]), "decay", 1))


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (drawn(16, 12), "guide is 96 x 128 px .12 x 16 latent cells.* sample is 128 x 128 px .16 x 16"),
        (torch.randn(1, 4, 16, 16), "4 channels.* 16 channels"),
        (torch.randn(1, 16, 3, 16, 16), "16 channels, 3 frames.*, but .* 16 channels.;"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused_before_the_model_runs(host, tiny_flux, guide, samples, said):
    model, calls = tiny_flux(), Calls()
    with pytest.raises(ValueError, match=said):
        sample(host, calls.around(model, lambda one: guide(one, samples)), torch.zeros(1, 16, 16, 16))
    assert not calls.before


def test_bad_values_are_refused_in_one_sentence(tiny_flux, guide):
    model, samples = tiny_flux(), drawn(8, 8)
    with pytest.raises(ValueError, match="the guide is an empty latent; connect"):
        guide(model, torch.zeros(1, 16, 8, 8))
    with pytest.raises(ValueError, match="the guide is an empty latent; connect"):
        guide(model, torch.cat([samples, torch.zeros_like(samples)]))
    with pytest.raises(ValueError, match="the guide has NaN or infinite values; expected finite numbers"):
        guide(model, samples.index_fill(3, torch.tensor([2]), float("nan")))
    with pytest.raises(ValueError, match=r"the guide has the shape .16, 8, 8.; expected a picture's"):
        guide(model, samples[0])
    for widgets, said in (
        ({"strength": float("nan")}, "strength is nan; expected a number from 0 to 2"),
        ({"level": 0}, "level is 0; expected a whole number from 1 to 8"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of decay, shift, constant"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "expected 0 <= start_percent <= end_percent <= 1"),
    ):
        with pytest.raises(ValueError, match=said):
            guide(model, samples, **widgets)
