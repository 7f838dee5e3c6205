"""The recipes' contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..guidance_record import drawn
from ..guidance_run import several_things
from ..guidance_sheet import Cell, beside, block
from ..subject import COMMITTED, Subject
from .plans import Extent
from .run import latents_of, picture_of
from .table import way

if TYPE_CHECKING:
    from PIL.Image import Image


def sheet(folder: Path, extent: Extent, subject: Subject = COMMITTED) -> Image:
    """A block for each strength: recipes below each other, scenes side by side, the drawn ones above."""
    scenes = several_things(extent.scenes)
    blocks: list[Image] = []
    for strength in extent.strengths:
        grid: list[tuple[str, list[Cell]]] = [("drawn", [drawn(scene, extent.side) for scene in scenes])]
        for recipe in extent.recipes:
            latents = latents_of(folder, extent, strength, recipe, subject)
            cells: list[Cell] = [
                picture_of(latents[index : index + 1], scene, extent) for index, scene in enumerate(scenes)
            ]
            grid.append((recipe.name, cells))
        blocks.append(block(f"{extent.side} px", [way(strength), *[""] * (len(scenes) - 1)], grid))
    return beside(blocks)
