"""Tiles cover the frame, blend to one, and are chosen by a fixed rule."""

from __future__ import annotations

import itertools

import pytest
import torch

from clear_core.call_memory import MemoryPlan
from clear_core.memory import GIB
from clear_core.sdedit import TileLayout, choose_tiles

LAYOUTS = [
    ((10, 10), (10, 10), 4),
    ((10, 10), (6, 6), 2),
    ((31, 95), (16, 16), 8),
    ((64, 64), (33, 64), 8),
    ((62, 190), (20, 40), 1),
    ((7, 50), (7, 9), 0),
]


@pytest.mark.parametrize(("grid", "tile", "overlap"), LAYOUTS, ids=str)
def test_weights_sum_to_one_everywhere(grid, tile, overlap):
    layout = TileLayout(grid, tile, overlap)
    total = torch.zeros(1, 1, 2 * grid[0], 2 * grid[1])
    for part in layout.tiles:
        total[(..., *part.latents)] += layout.weight(part)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize(("grid", "tile", "overlap"), LAYOUTS, ids=str)
def test_neighbours_share_at_least_the_overlap(grid, tile, overlap):
    layout = TileLayout(grid, tile, overlap)
    for axis in (0, 1):
        starts = layout.starts(axis)
        assert starts[0] == 0 and starts[-1] + tile[axis] == grid[axis]
        assert all(a + tile[axis] - b >= overlap for a, b in itertools.pairwise(starts))
        # One tile fewer would not cover the frame.
        assert len(starts) == 1 or grid[axis] > (len(starts) - 1) * (tile[axis] - overlap) + overlap


def test_feathers_are_smooth_and_end_near_nothing():
    layout = TileLayout((8, 40), (8, 24), 8)
    weight = layout.axis_weights[1][0]
    assert (weight[:32] == 1).all() and weight[-1] < 0.02
    assert weight.diff().min() > -0.11 and (weight.diff() <= 0).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((16, 512, 64), ["tile_height", "16", "32"]),
        ((512, 20, 64), ["tile_width", "20"]),
        ((512, 256, 144), ["tile_overlap", "144", "tile_width 256", "128"]),
    ],
    ids=str,
)
def test_refuses_tiles_in_one_sentence(values, words):
    with pytest.raises(ValueError) as refused:
        TileLayout.of_pixels((64, 64), *values)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24, 48])
@pytest.mark.parametrize("grid", [(64, 64), (128, 128), (256, 256), (512, 512), (48, 384)], ids=str)
def test_automatic_tiles_fit_the_card(grid, gigabytes):
    memory, total = MemoryPlan(weights=12 * GIB), gigabytes * GIB
    layout = choose_tiles(grid, memory=memory, total=total)
    assert memory.peak_bytes(layout.tile[0] * layout.tile[1]) <= memory.budget(total)
    # As few tiles as memory allows: the next larger tile does not fit.
    if not layout.is_whole:
        larger = [
            -(-(grid[axis] + max(0, len(layout.starts(axis)) - 2) * 8) // max(1, len(layout.starts(axis)) - 1))
            for axis in (0, 1)
        ]
        assert memory.peak_bytes(larger[0] * larger[1]) > memory.budget(total)


def test_a_larger_card_never_gets_smaller_tiles():
    sizes = [
        choose_tiles((512, 512), memory=MemoryPlan(weights=12 * GIB), total=gb * GIB).tile
        for gb in (8, 12, 16, 24, 32, 48, 80)
    ]
    areas = [h * w for h, w in sizes]
    assert areas == sorted(areas) and areas[-1] == 512 * 512


def test_one_side_given_leaves_the_other_to_the_rule():
    memory = MemoryPlan(weights=12 * GIB)
    layout = choose_tiles((256, 256), tile_width=1024, memory=memory, total=8 * GIB)
    assert layout.tile[1] == 64 and layout.tile[0] == 256
    layout = choose_tiles((256, 256), tile_height=512, tile_width=768, overlap=64, memory=memory, total=0)
    assert layout.tile == (32, 48) and layout.overlap == 4


def test_the_targets_are_met_by_calculation():
    """4096 x 4096 on 24 GB and 8192 x 8192 on 48 GB, fp8 weights, as whole frames."""
    fp8 = MemoryPlan(weights=int(11.9e9))
    for side, gigabytes in ((4096, 24), (8192, 48)):
        assert choose_tiles((side // 16, side // 16), memory=fp8, total=gigabytes * GIB).is_whole


@pytest.mark.parametrize(("grid", "tile", "overlap"), LAYOUTS, ids=str)
def test_every_wanted_place_keeps_all_its_tiles(grid, tile, overlap):
    layout = TileLayout(grid, tile, overlap)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        wanted = torch.zeros(2, 1, 2 * grid[0], 2 * grid[1])
        y, x = (int(torch.randint(2 * side, (1,), generator=generator)) for side in grid)
        wanted[1, 0, y, x] = 0.01
        needed = layout.needed_for(wanted)
        covers = [part for part in layout.tiles if wanted[(..., *part.latents)].any()]
        assert list(needed.tiles) == covers and len(needed.skipped) == len(layout.tiles) - len(covers)
        assert all(torch.equal(needed.weight(part), layout.weight(part)) for part in covers)
    assert layout.needed_for(torch.zeros(2, 1, 2 * grid[0], 2 * grid[1])) == layout
