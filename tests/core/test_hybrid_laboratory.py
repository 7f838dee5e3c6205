"""The hybrid laboratory: what a plan does to the model, what it costs, and what its record says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import SequenceLayout
from clear_core.cost import clear_pairs, dense_pairs
from clear_core.sdedit import sdedit_sigmas
from demo.experiments.hybrid import RECORD
from demo.experiments.hybrid_attention import BLOCKS, Plan, planned, progress_at
from demo.experiments.hybrid_plans import DENSE, FLOWS, SETTINGS, TILES, early, overview, plain, pooled
from demo.experiments.hybrid_run import TiledDenoiser, model_of
from demo.experiments.hybrid_table import tables
from demo.model import CAPTION, build_denoiser

HYBRID: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
NOISE = torch.randn(1, 16, 24, 20, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def flow(plan: Plan, sigma: float = 0.7, tile: int = 0) -> torch.Tensor:
    model, weights = model_of(plan)
    with planned(model, plan, weights) as at:
        return TiledDenoiser(model, at, [CAPTION], tile)(NOISE, sigma)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_a_dense_plan_is_the_model_and_leaves_it_as_it_was():
    denoiser = build_denoiser()
    with torch.inference_mode():
        stock = denoiser(NOISE, 0.7)
        before = list(denoiser.transformer.attn_processors.values())
        with planned(denoiser.transformer, plain(2)) as at:
            at((12, 10), 0.7)
            assert distance(denoiser(NOISE, 0.7), stock) > 0.05
        assert list(denoiser.transformer.attn_processors.values()) == before
    assert distance(flow(DENSE), stock) < 1e-5


@pytest.mark.parametrize(
    "plan, sigma",
    [
        (overview(3, 1), 0.7),
        (plain(30), 0.7),
        (replace(plain(2), dense_blocks=tuple(range(BLOCKS))), 0.7),
        (replace(plain(2), start=0.3), 0.95),
    ],
    ids=lambda value: value.name if isinstance(value, Plan) else None,
)
def test_plans_that_are_dense(plan: Plan, sigma: float):
    assert distance(flow(plan, sigma), flow(DENSE, sigma)) < 2e-5


def test_a_start_ends_at_its_share_of_the_schedule():
    plan = replace(plain(2), start=0.3)
    sigmas = sdedit_sigmas(10, 1.0).tolist()[:-1]
    assert [plan.is_dense_at(sigma) for sigma in sigmas] == [True] * 3 + [False] * 7
    assert [round(progress_at(sigma), 5) for sigma in sigmas] == [round(step / 10, 5) for step in range(10)]
    assert distance(flow(plan, sigmas[3]), flow(plain(2), sigmas[3])) == 0
    assert distance(flow(plan, sigmas[2]), flow(plain(2), sigmas[2])) > 0.05


def test_shares_are_counted():
    layout = SequenceLayout(24, (32, 32))
    sigmas = sdedit_sigmas(10, 1.0).tolist()[:-1]
    each = clear_pairs(layout, plain(8).spec) / dense_pairs(layout)
    assert DENSE.share(layout, sigmas) == 1
    assert plain(8).share(layout, sigmas) == pytest.approx(each)
    assert replace(plain(8), start=0.2).share(layout, sigmas) == pytest.approx(0.2 + 0.8 * each)
    assert replace(plain(8), dense_blocks=(0,)).share(layout, sigmas) == pytest.approx(0.25 + 0.75 * each)


def test_tiles_are_blended_and_keep_their_places():
    whole = flow(DENSE)
    assert torch.equal(flow(DENSE, tile=512), whole), "a tile larger than the frame is the frame"
    model, _ = model_of(DENSE)
    called: list[tuple[int, int]] = []
    noise = torch.randn(1, 16, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), planned(model, DENSE) as at:

        def watched(grid: tuple[int, int], sigma: float) -> None:
            called.append(grid)
            at(grid, sigma)

        TiledDenoiser(model, watched, [CAPTION], 256)(noise, 0.5)
    assert called == [(16, 16)] * 4


def test_the_record_has_every_plan_at_its_cost():
    for part, (side, scenes) in zip(HYBRID["flows"], FLOWS, strict=True):
        assert (part["side"], part["scenes"]) == (side, scenes)
        assert [row["plan"] for row in part["rows"]] == [plan.name for plan in FLOWS[side, scenes]]
    for part, (setting, plans) in zip(HYBRID["settings"], SETTINGS.items(), strict=True):
        assert (part["setting"], part["scenes"]) == (setting.name, setting.scenes)
        assert [row["plan"] for row in part["rows"]] == [plan.name for plan in (DENSE, *plans)]
        for row, plan in zip(part["rows"], (DENSE, *plans), strict=True):
            assert row["share"] == pytest.approx(setting.share(plan))


def test_the_overview_wins_in_the_record():
    """What ``ClearSpec.overview`` is kept for."""
    for part, (side, _) in zip(HYBRID["flows"], FLOWS, strict=True):
        errors = {row["plan"]: sum(row["by_scene"]) for row in part["rows"]}
        for radius in (side // 128, side // 64, side // 32):
            assert errors[overview(radius).name] < errors[pooled(radius).name] / 5
            assert errors[overview(radius).name] < errors[plain(radius).name] / 5
    for setting in SETTINGS:
        (part,) = (one for one in HYBRID["settings"] if one["setting"] == setting.name)
        quality = {row["plan"]: sum(row["psnr"]) / len(row["psnr"]) for row in part["rows"][1:]}
        for plan in SETTINGS[setting]:
            if plan == overview(plan.radius) and plain(plan.radius).name in quality:
                assert quality[plan.name] > quality[plain(plan.radius).name] + 5


def test_a_short_run_gives_the_recorded_flow_errors():
    """The record in small, at one noise level of one scene."""
    from demo.experiments.guidance_run import several_things
    from demo.experiments.hybrid_record import all_flows
    from demo.tiny_flux.data import draw_latents
    from demo.tiny_flux.evaluate import seeded_noise

    scenes = several_things(1)
    inputs = scenes, draw_latents(scenes, (512, 512)), seeded_noise(4, (512, 512), 7)[:1]
    wanted = all_flows(DENSE, *inputs)
    rows = {row["plan"]: row["by_scene"][0] for row in HYBRID["flows"][0]["rows"]}
    for plan in (plain(8), overview(8)):
        found = all_flows(plan, *inputs)
        error = sum((one - other).square().mean().item() for one, other in zip(found, wanted, strict=True)) / len(found)
        assert error == pytest.approx(rows[plan.name], rel=0.01)


def test_tiles_start_after_the_dense_share():
    for setting, plans in TILES.items():
        (plan,) = (plan for plan in plans if plan.start)
        assert [plan.is_dense_at(sigma) for sigma in setting.sigmas[:-1]].count(True) == 1
        assert early(plain(8), plan.start) == [plan]


def test_the_readme_shows_the_record():
    assert tables(HYBRID) in RECORD.with_name("README.md").read_text(encoding="utf-8")
