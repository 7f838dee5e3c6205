"""Sides and overlaps of the tiles that a VAE encodes and decodes a stage's picture in, in px.

Source: ``VAE.encode_tiled_`` of ComfyUI 0.9.0 and later, which encodes pictures three times: in tiles of ``side`` by
``side``, of twice by half and of half by twice, and adds a tile's latent at the rounded place of its first pixel. Off a
cell that is up to half a cell wrong, and the last rows may belong to no tile: they become 0 / 0, and denoising spreads
that over the picture.
"""

from __future__ import annotations

from collections.abc import Iterable

from .stages import Stage

LARGEST_AUTOMATIC = 1024
SMALLEST_AUTOMATIC = 256
"""Sides if nobody chose one."""

SMALLEST_VAE_TILE = 64
"""Side that can be chosen, and the step of the widget: 8 latent cells of FLUX.1, one of them overlap."""


def automatic_vae_tile(tiles: Iterable[int]) -> int:
    """Side of the VAE's tiles if nobody chose one.

    Args:
        tiles: Width and height of the picture's tiles as set, 0 for automatic.
    """
    side = min(filter(None, tiles), default=LARGEST_AUTOMATIC)
    return max(min(side, LARGEST_AUTOMATIC), SMALLEST_AUTOMATIC)


def vae_tile_of(stage: Stage, wanted: int) -> int:
    """Side of the VAE's tiles in a stage, 0 if one holds the whole picture."""
    side = aligned(wanted, stage.units.latent_pixels)
    return 0 if max(wanted, side) >= max(stage.padded) else side


def smaller_vae_tile(stage: Stage, tile: int) -> int | None:
    """Side to choose if tiles of this one, or the whole picture (0), took too much; None if there is no smaller one."""
    present = tile or max(stage.padded)
    steps = max(min(present // 2, LARGEST_AUTOMATIC) // SMALLEST_VAE_TILE, 1)
    side = aligned(steps * SMALLEST_VAE_TILE, stage.units.latent_pixels)
    return side if side < present else None


def aligned(side: int, cell: int) -> int:
    """The side rounded down to an even number of latent cells of ``cell`` px, 4 at least."""
    return max(side // (2 * cell), 2) * 2 * cell


def vae_overlap(side: int, cell: int) -> int:
    """Overlap of such tiles: an eighth of their side in whole cells, one at least."""
    return max(side // 8 // cell, 1) * cell
