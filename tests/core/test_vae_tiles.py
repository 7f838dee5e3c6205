"""The VAE's tiles: every tile of every pass of the host begins and ends on a latent cell."""

from __future__ import annotations

import pytest

from clear_core.frame_units import FrameUnits
from clear_core.sdedit import SMALLEST_VAE_TILE, Stage, automatic_vae_tile, smaller_vae_tile, vae_overlap, vae_tile_of


@pytest.mark.parametrize("cell", [1, 8, 16, 32])
def test_tiles_begin_and_end_on_cells_and_overlap(cell):
    stage = Stage(1, (8192, 8192), (8192, 8192), 0.5, 0, units=FrameUnits(cell, 1))
    for wanted in range(SMALLEST_VAE_TILE, 4097):
        side = vae_tile_of(stage, wanted)
        overlap = vae_overlap(side, cell)
        for length in (side // 2, side, 2 * side):
            assert length % cell == overlap % cell == 0 and 0 < overlap <= length // 2
        assert side == 4 * cell or wanted - 2 * cell < side <= wanted


def test_a_tile_as_long_as_the_picture_is_the_whole_picture():
    stage = Stage(1, (100, 200), (100, 200), 0.5, 0)
    assert stage.padded == (112, 208)
    assert [vae_tile_of(stage, side) for side in (64, 200, 207, 208, 1024)] == [64, 192, 192, 0, 0]


def test_automatic_tiles_are_the_pictures_between_two_sides():
    widths = [(0, 0), (512, 0), (0, 2048), (128, 512), (768, 640)]
    assert [automatic_vae_tile(tiles) for tiles in widths] == [1024, 512, 1024, 256, 640]


@pytest.mark.parametrize("cell", [8, 16, 32])
def test_advice_ends_at_the_smallest_tiles(cell):
    """Each advice is smaller, is taken as it is, and can be set in the widget's steps."""
    stage, tile, seen = Stage(1, (8192, 8192), (8192, 8192), 0.5, 0, units=FrameUnits(cell, 1)), 0, []
    while (smaller := smaller_vae_tile(stage, tile)) is not None:
        assert smaller < (tile or 8192) and smaller % SMALLEST_VAE_TILE == 0 and vae_tile_of(stage, smaller) == smaller
        seen.append(tile := smaller)
    assert seen == [side for side in (1024, 512, 256, 128, 64) if side >= 4 * cell]
