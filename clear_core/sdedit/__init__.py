"""High-resolution sampling from an enlarged image (SDEdit, arXiv 2108.01073; CLEAR's high-resolution recipe)."""

from .autotile import choose_tiles
from .color import COLOR_FIXES, wavelet_color_fix
from .guides import AUTO, GUIDED_ABOVE, GUIDES, OFF, guided_stages
from .images import as_mask, as_picture, check_finite, reflect_to
from .sampling import euler, noised, sdedit
from .schedule import sdedit_sigmas, static_shift
from .stages import Stage, plan_stages
from .tiles import DEFAULT_OVERLAP, Tile, TileLayout
from .vae_tiles import SMALLEST_VAE_TILE, automatic_vae_tile, smaller_vae_tile, vae_overlap, vae_tile_of

__all__ = [
    "AUTO",
    "COLOR_FIXES",
    "DEFAULT_OVERLAP",
    "GUIDED_ABOVE",
    "GUIDES",
    "OFF",
    "SMALLEST_VAE_TILE",
    "Stage",
    "Tile",
    "TileLayout",
    "as_mask",
    "as_picture",
    "automatic_vae_tile",
    "check_finite",
    "choose_tiles",
    "euler",
    "guided_stages",
    "noised",
    "plan_stages",
    "reflect_to",
    "sdedit",
    "sdedit_sigmas",
    "smaller_vae_tile",
    "static_shift",
    "vae_overlap",
    "vae_tile_of",
    "wavelet_color_fix",
]
