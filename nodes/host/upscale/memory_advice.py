"""What to set after a stage ran out of memory.

Source: ``comfy.model_management`` (``is_oom``, ``OOM_EXCEPTION``, ``soft_empty_cache``), ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import comfy.model_management

from ....clear_core.sdedit import Stage, TileLayout, smaller_vae_tile
from .vae_work import can_tile

ADVICE_ENLARGE = "use a smaller upscale model or leave upscale_model unconnected"


def vae_advice(vae: Any, stage: Stage, tile: int) -> str:
    """For a VAE that works in tiles of ``tile`` px, or on the whole picture if that is 0."""
    side = smaller_vae_tile(stage, tile) if can_tile(vae) else None
    return f"set vae_tile_size to {side}, or lower upscale_by" if side else "lower upscale_by"


def tile_advice(tiles: TileLayout) -> str:
    """For a model that samples these tiles."""
    return f"set tile_width and tile_height to {smaller_side(tiles)}, or lower upscale_by"


def smaller_side(tiles: TileLayout) -> int:
    """Side of smaller tiles in px if these did not fit: about half their area, in steps of 128 px."""
    return max(256, int(min(tiles.tile) * tiles.units.pixels * 0.7) // 128 * 128)


@contextmanager
def memory_advice(doing: str, stage: Stage, advice: str) -> Generator[None]:
    """Replace an out-of-memory error by a sentence that names what to set."""
    try:
        yield
    except Exception as error:
        try:
            out_of_memory = comfy.model_management.is_oom(error)
        except AttributeError:  # an older ComfyUI
            out_of_memory = isinstance(error, comfy.model_management.OOM_EXCEPTION)
        if not out_of_memory:
            raise
        # The traceback keeps the failed call's tensors alive.
        error.__traceback__ = None
    else:
        return
    comfy.model_management.soft_empty_cache()
    height, width = stage.size
    raise comfy.model_management.OOM_EXCEPTION(
        f"Out of memory while {doing} stage {stage.number} ({width} x {height} px): {advice}. Changed settings run "
        "all stages again; run unchanged, after other memory was freed, it goes on after the finished stages."
    )
