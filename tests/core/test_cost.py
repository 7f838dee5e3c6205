"""Counts against the paper's exact figures, brute force, and the bounds the engine promises."""

import itertools

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, cost
from clear_core.attention.tiling.plan import tile_plan

CPU = torch.device("cpu")
SIDES = {"1K": 64, "2K": 128, "4K": 256, "8K": 512}


@pytest.mark.parametrize(
    "name, radius, pairs",
    [
        ("1K", 8, 5_166_500),
        ("1K", 16, 7_051_328),
        ("1K", 32, 12_541_484),
        ("2K", 8, 20_038_564),
        ("2K", 16, 28_693_056),
        ("2K", 32, 58_940_460),
        ("4K", 8, 79_691_684),
        ("4K", 16, 116_631_104),
        ("4K", 32, 255_670_316),
        ("8K", 8, 318_633_892),
        ("8K", 16, 471_125_568),
        ("8K", 32, 1_064_857_644),
    ],
)
def test_exact_pairs_of_the_paper(name, radius, pairs):
    layout = SequenceLayout(512, (SIDES[name], SIDES[name]))
    assert cost.clear_pairs(layout, ClearSpec(radius)) == pairs


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (5, 7)], ids=str)
@pytest.mark.parametrize(
    "spec", [ClearSpec(1), ClearSpec(4), ClearSpec(20), ClearSpec(3, 2), ClearSpec(3, 1, True)], ids=str
)
def test_pairs_counted_one_by_one(grid, spec):
    layout = SequenceLayout(3, grid, 2)
    tokens = list(itertools.product(range(grid[0]), range(grid[1])))
    window = sum((a - c) ** 2 + (b - d) ** 2 < spec.radius**2 for a, b in tokens for c, d in tokens)
    cells = len({(y // spec.down_factor, x // spec.down_factor) for y, x in tokens}) if spec.pools else 0
    outside = 3 + 2
    expected = outside * layout.length + len(tokens) * (outside + cells) + window
    if spec.overview:
        # Cells of one token, which are seen where the window does not see the token.
        expected -= window
    assert cost.clear_pairs(layout, spec) == expected


# Published figures of block area over exact pairs for 2-D tiles, to two decimals.
@pytest.mark.parametrize(
    "name, bounds",
    [("1K", (1.35, 1.42, 1.29)), ("2K", (1.41, 1.52, 1.42)), ("4K", (1.44, 1.57, 1.48)), ("8K", (1.46, 1.60, 1.51))],
)
def test_overcompute_of_square_pictures(name, bounds):
    layout = SequenceLayout(512, (SIDES[name], SIDES[name]))
    found = [round(cost.overcompute(tile_plan(layout, ClearSpec(radius), CPU)), 2) for radius in (8, 16, 32)]
    assert all(a <= b for a, b in zip(found, bounds, strict=True)), found


@pytest.mark.parametrize("grid", [(52, 76), (48, 84), (68, 120), (90, 160), (144, 256)], ids=str)
@pytest.mark.parametrize("radius", [8, 16, 32])
def test_overcompute_of_ragged_pictures(grid, radius):
    assert cost.overcompute(tile_plan(SequenceLayout(512, grid), ClearSpec(radius), CPU)) <= 1.70


def test_visited_pairs_are_at_least_the_exact_ones_and_count_every_block():
    plan = tile_plan(SequenceLayout(70, (20, 30), 5), ClearSpec(6, 3), CPU)
    blocks = int(plan.partial_count.sum() + plan.full_count.sum()) + plan.query_tiles * 3  # 145 prefix keys
    assert cost.visited_blocks(plan) == blocks
    assert cost.visited_pairs(plan) == blocks * 128 * 64 + 75 * 675
    assert cost.visited_pairs(plan) >= cost.clear_pairs(plan.layout, plan.spec)


def test_gflops_of_dense_attention_at_1k():
    # 0.26 TFLOP a layer in the paper's table.
    assert cost.gflops(cost.dense_pairs(SequenceLayout(512, (64, 64)))) == pytest.approx(260.9, abs=0.1)
