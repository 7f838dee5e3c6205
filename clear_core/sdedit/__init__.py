"""High-resolution sampling from an enlarged image (SDEdit, arXiv 2108.01073; CLEAR's high-resolution recipe)."""

from .autotile import choose_tiles
from .color import COLOR_FIXES, wavelet_color_fix
from .images import as_mask, as_picture, check_finite, reflect_to
from .sampling import euler, noised, sdedit
from .schedule import sdedit_sigmas, static_shift
from .stages import Stage, plan_stages
from .tiles import DEFAULT_OVERLAP, Tile, TileLayout

__all__ = [
    "COLOR_FIXES",
    "DEFAULT_OVERLAP",
    "Stage",
    "Tile",
    "TileLayout",
    "as_mask",
    "as_picture",
    "check_finite",
    "choose_tiles",
    "euler",
    "noised",
    "plan_stages",
    "reflect_to",
    "sdedit",
    "sdedit_sigmas",
    "static_shift",
    "wavelet_color_fix",
]
