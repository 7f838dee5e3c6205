"""The hybrid laboratory's contact sheet: some plans below each other, settings and scenes side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from .guidance_record import shown
from .guidance_sheet import Cell, beside, block
from .hybrid_attention import Plan
from .hybrid_plans import DENSE, SETTINGS, Setting, distilled, overview, plain, pooled
from .hybrid_run import Folder

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN: tuple[Plan, ...] = (
    DENSE,
    plain(4),
    plain(8),
    pooled(8),
    plain(16),
    replace(plain(8), start=0.3),
    replace(plain(8), dense_blocks=(0,)),
    overview(4, 8),
    overview(4),
    overview(8),
    distilled(plain(4)),
    distilled(plain(8)),
)


def sheet(folder: Folder) -> Image:
    """A block for each setting with windows of these radii, side by side."""
    return beside([of_setting(folder, setting) for setting in SETTINGS if plain(8) in SETTINGS[setting]])


def of_setting(folder: Folder, setting: Setting) -> Image:
    """The shown plans of a setting, and all of its scenes."""
    # The name of a setting is wider than the column of names, and narrower than two pictures.
    heads = [setting.name] + [""] * (setting.scenes - 1)
    plans = [plan for plan in SHOWN if plan in (DENSE, *SETTINGS[setting])]
    return block("", heads, [(plan.name, cells(folder.latents(setting, plan), setting.scenes)) for plan in plans])


def cells(latents: Tensor, count: int) -> list[Cell]:
    return [shown(latents[index : index + 1]) for index in range(count)]
