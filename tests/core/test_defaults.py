"""Defaults of the product beside the records that they rest on: neither changes without the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from clear_core.families import FLUX1
from clear_core.rope import RopeStretch
from clear_core.settings import ClearSettings
from demo.experiments.hybrid import RECORD as HYBRID_RECORD
from demo.experiments.hybrid_attention import Plan
from demo.experiments.hybrid_plans import overview, plain
from demo.experiments.measure import mean
from demo.experiments.recipe.command import RECORD as RECIPE_RECORD
from demo.experiments.recipe.plans import Recipe
from tools.schemas import read_schemas

PROJECT = Path(__file__).resolve().parents[2]

# CLEAR Attention on a model without distilled weights, as it comes out of the menu.
AS_IT_COMES = ClearSettings.of_widgets(0, 0, None)
FROM_NOISE = "512 px from noise"
"""The setting that starts from noise at a size of the model's training: dense attention finds all things there."""


def quality(setting: str) -> dict[str, float]:
    """Mean PSNR against dense attention by plan, in a setting of the hybrid laboratory."""
    record: dict[str, Any] = json.loads(HYBRID_RECORD.read_text(encoding="utf-8"))
    (part,) = (one for one in record["settings"] if one["setting"] == setting)
    return {row["plan"]: mean(row["psnr"]) for row in part["rows"] if "psnr" in row}


def default_plan(grid: int) -> Plan:
    """The default on FLUX.1's square grid of this side, as the same share of the laboratory's 32 tokens."""
    spec = AS_IT_COMES.spec_on((grid, grid))
    assert spec.overview, "without weights what is outside the window is seen as an overview"
    assert 32 * spec.radius % grid == 0
    return overview(32 * spec.radius // grid, spec.down_factor)


def test_without_weights_the_node_does_what_the_hybrid_laboratory_asks_for():
    plan = overview(4)
    # A radius of 1/8 of the side and cells of 4 x 4 tokens, at 2048 and at 4096 px.
    assert default_plan(128) == default_plan(256) == plan
    found = quality(FROM_NOISE)
    # Everything that costs no more pairs is further from dense attention, by far.
    assert found[plan.name] > max(found[each.name] for each in (plain(4), plain(8))) + 10
    # A wider window or finer cells are nearer, but not by what they cost: each is a widget.
    assert found[overview(8).name] - found[plan.name] < 5


def test_without_weights_no_step_and_no_block_is_dense():
    """The record: 2 dB for 17 points of the pairs, and 1 dB for 22."""
    assert AS_IT_COMES.dense_blocks == "" and AS_IT_COMES.start_percent == 0.0
    found, plan = quality(FROM_NOISE), default_plan(128)
    assert found[f"{plan.name}, dense before 0.2"] - found[plan.name] < 3
    assert found[f"{plan.name}, dense blocks 0"] - found[plan.name] < 2


def recipes(strength: float) -> dict[str, dict[str, float]]:
    """The rows of the laboratory of recipes by name, at a share of the schedule."""
    record: dict[str, Any] = json.loads(RECIPE_RECORD.read_text(encoding="utf-8"))
    return {row["recipe"]: row for row in record["rows"] if row["strength"] == strength}


def default_recipe() -> Recipe:
    """What CLEAR Attention and CLEAR Upscale do as they come, at twice the side of FLUX.1's training."""
    grid = (128, 128)
    stretch = RopeStretch.of(AS_IT_COMES.ntk, AS_IT_COMES.ntk_factor, grid, FLUX1)
    proportional = AS_IT_COMES.proportional_attention == "auto" and FLUX1.is_hires(grid[0] * grid[1])
    upscale = next(schema for schema in read_schemas(PROJECT) if schema.node_id == "CLEARUpscale")
    (color_fix,) = (one.options["default"] for one in upscale.inputs if one.name == "color_fix")
    return Recipe(stretch.kind, stretch.factor, proportional, color_fix)


@pytest.mark.parametrize("strength", [0.5, 0.7])
def test_past_the_training_a_large_picture_gets_the_recipe_that_keeps_its_layout(strength):
    default, found = default_recipe(), recipes(strength)
    plain, own = found["no NTK"], found[default.name]
    # The stretch: layout and surplus better than without, and than a smaller or a fading one.
    for other in ("no NTK", "NTK constant 2", "NTK fading, proportional"):
        assert own["layout"] > found[other]["layout"] + 0.003, other
        assert own["surplus"] <= found[other]["surplus"] - 1, other
    # The proportional scale: detail, at little layout; alone it takes layout and gives surplus.
    stretched = found["NTK constant 10"]
    assert own["detail"] > 1.2 * stretched["detail"]
    assert own["layout"] > stretched["layout"] - 0.01
    assert found["no NTK, proportional"]["layout"] < plain["layout"]
    # The colour fix would bring every thing back, and hide what went wrong: it is off, and there for who asks for it.
    assert default.color_fix == "none"
    fixed = found[f"{default.name}, colour fix"]
    assert (fixed["found"], fixed["surplus"]) == (1.0, 0.0)
    assert 0.95 * own["detail"] < fixed["detail"] < own["detail"]
