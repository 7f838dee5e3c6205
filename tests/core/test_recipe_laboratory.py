"""The laboratory of recipes: its names, its colour measure and fix, and the product's defaults beside its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import ClearSpec
from clear_core.families import FLUX1
from clear_core.rope import RopeStretch
from clear_core.settings import ClearSettings
from demo.experiments.guidance_run import several_things
from demo.experiments.recipe.plans import EXTENTS, PLAIN, PUBLISHED, RECIPES, Recipe
from demo.experiments.recipe.run import colour_error, latents_of, picture_of, rows
from demo.experiments.recipe.table import tables
from demo.tiny_flux.codec import encode

QUICK = EXTENTS["quick"]


def test_every_recipe_has_a_name_of_its_own():
    every = [*RECIPES, *(replace(recipe, color_fix="wavelet") for recipe in RECIPES)]
    assert len({recipe.name for recipe in every}) == len(every)
    assert PLAIN.name == "no NTK" and PUBLISHED.name == "NTK constant 10, proportional"
    assert {replace(recipe, color_fix="wavelet").sampled for recipe in RECIPES} == set(RECIPES)


def test_the_published_recipe_is_what_the_product_does_above_the_training_of_flux():
    """CLEAR's notebook: factor 10 and the proportional scale, from more than 8192 image tokens on."""
    settings = ClearSettings(ClearSpec(8))
    stretch = RopeStretch.of(settings.ntk, settings.ntk_factor, (128, 128), FLUX1)
    assert (stretch.kind, stretch.factor) == (PUBLISHED.ntk, PUBLISHED.factor)
    assert settings.proportional_attention == "auto" and FLUX1.is_hires(128 * 128)
    assert not FLUX1.is_hires(64 * 64), "at the size of the training nothing is stretched"
    assert RopeStretch.of(settings.ntk, settings.ntk_factor, (64, 64), FLUX1).factor == PLAIN.factor


def test_colour_is_that_of_coarse_means():
    wanted = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert colour_error(wanted, wanted) == 0
    assert colour_error(wanted + 2 / 255, wanted) == pytest.approx(2, abs=1e-4)
    cells = wanted.unflatten(2, (16, 4)).flip(3).flatten(2)
    assert colour_error(cells, wanted) < 1e-4, "the order within a cell is detail"


def test_the_colour_fix_keeps_the_colours_of_the_start(tmp_path: Path):
    (scene,) = several_things(1)
    latents = latents_of(tmp_path, QUICK, 0.5, PLAIN)
    shifted = encode((picture_of(latents, scene, QUICK)[None] + 0.1).clamp(0, 1))
    plain, fixed = (picture_of(shifted, scene, QUICK, fix) for fix in ("none", "wavelet"))
    start = picture_of(latents, scene, QUICK, "wavelet")
    assert colour_error(fixed, start) < colour_error(plain, start) / 4


def test_recipes_differ_and_are_made_once(tmp_path: Path):
    found = list(rows(tmp_path, QUICK))
    assert [row["recipe"] for row in found[::2]] == [recipe.name for recipe in RECIPES]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == len(RECIPES), "the colour fix needs no latents of its own"
    assert list(rows(tmp_path, QUICK)) == found
    other = latents_of(tmp_path, QUICK, 0.5, Recipe("constant", 10.0))
    assert (other - latents_of(tmp_path, QUICK, 0.5, PLAIN)).abs().max() > 1e-4
    shown = tables({"side": 64, "scenes": 1, "rows": found})
    assert all(f"| {row['recipe']} | {row['layout']:.4f} |" in shown for row in found)
