"""The contact sheet of positions: methods below each other, settings and scenes side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .guidance_record import drawn, shown
from .guidance_sheet import Cell, beside, block
from .positions_methods import PAST, SETTINGS, TABLE_SIDE, Setting
from .positions_run import Folder

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_SCENES = 2


def sheet(folder: Folder) -> Image:
    """A block for each setting past the table."""
    return beside([of_setting(folder, setting) for setting in SETTINGS if setting.side > TABLE_SIDE])


def of_setting(folder: Folder, setting: Setting) -> Image:
    """The methods of a setting and its first scenes, below the drawn ones."""
    scenes = folder.scenes[:SHOWN_SCENES]
    grid: list[tuple[str, list[Cell]]] = [("drawn", [drawn(scene, setting.side) for scene in scenes])]
    for method in PAST:
        cells: list[Cell] = [None] * len(scenes)
        if method in SETTINGS[setting]:
            latents = folder.latents(setting, method)
            cells = [shown(latents[index][None]) for index in range(len(scenes))]
        grid.append((method.name, cells))
    # The name of a setting is wider than the column of names.
    title, _, rest = setting.name.partition(" px ")
    return block(f"{title} px", [rest, *[""] * (len(scenes) - 1)], grid)
