"""What the laboratory of positions compares: ways to give a frame's tokens positions, and the settings for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clear_core.layout import TOKEN_PIXELS
from clear_core.position_table import PositionTable
from clear_core.sdedit import Tile, sdedit_sigmas

Places = Literal["own", "continued", "squeezed", "resampled", "trained span"]
"""Where on the table the tokens lie. ``own``: in its middle, as the model itself crops it, a tile as if it were the
picture. The others are those of the whole frame: ``continued`` past the end by the formula; ``squeezed`` into the
table, by the formula between its places, or ``resampled``, linearly; squeezed into what training saw of it."""

TRAINED = 20
"""Tokens along the longest side of the tiny SD3's training."""


@dataclass(frozen=True)
class Method:
    """One way to run a frame.

    Attributes:
        places: Of its tokens.
        tile: Side of the tiles in px; 0 is the whole frame in one call.
        captioned: Whether the caption is told; it is that of the whole picture.
    """

    places: Places
    tile: int = 0
    captioned: bool = True

    @property
    def name(self) -> str:
        what = f"tiles of {self.tile} px" if self.tile else "whole frame"
        return f"{what}, {self.places}" + ("" if self.captioned else ", no caption")

    def positions(self, table: PositionTable, grid: tuple[int, int], tile: Tile) -> Tensor:
        """(1, tokens, width) of a tile of a frame of ``grid`` tokens."""
        if self.places == "own":
            return table.at(table.middle(tile.height), table.middle(tile.width))
        along = [
            frame_places(table, self.places, count)[start : start + length]
            for count, start, length in zip(grid, (tile.y, tile.x), (tile.height, tile.width), strict=True)
        ]
        if self.places != "resampled":
            return table.at(along[0], along[1])
        down, across = (
            between(stored, places) for stored, places in zip((table.rows, table.columns), along, strict=True)
        )
        shape = (tile.height, tile.width, -1)
        return torch.cat([across[None].expand(shape), down[:, None].expand(shape)], dim=-1).flatten(0, 1)[None]


def frame_places(table: PositionTable, places: Places, count: int) -> Tensor:
    """(count,) places of a frame's side of ``count`` tokens."""
    if places == "continued":
        return table.middle(count)
    span = TRAINED if places == "trained span" else table.side
    return (torch.arange(count) + 0.5) * span / count - 0.5 + (table.side - span) / 2


def between(stored: Tensor, places: Tensor) -> Tensor:
    """(N, C) of a (side, C) table, linearly between its places, and its ends outside."""
    inside = places.clamp(0, len(stored) - 1)
    low = inside.floor().long().clamp(max=len(stored) - 2)
    share = (inside - low)[:, None]
    return stored[low] * (1 - share) + stored[low + 1] * share


@dataclass(frozen=True)
class Setting:
    """A way to a picture, the same for every method in it.

    Attributes:
        side: Of the picture in px.
        strength: Share of the schedule that is run; 1 starts from noise, less redraws the enlarged small picture.
    """

    side: int
    strength: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.side} px " + ("from noise" if self.strength == 1 else f"by SDEdit {self.strength:g}")

    @property
    def sigmas(self) -> list[float]:
        """The noise levels of the run, the last one 0."""
        return sdedit_sigmas(STEPS, self.strength).tolist()


STEPS, SCENES = 10, 4
TABLE_SIDE = 32 * TOKEN_PIXELS
BASE_SIDE = TRAINED * TOKEN_PIXELS
"""Side in px of the pictures that are redrawn."""

WITHIN: tuple[Method, ...] = (
    Method("own"),
    Method("trained span"),
    Method("own", BASE_SIDE),
    Method("continued", BASE_SIDE),
    Method("own", BASE_SIDE, captioned=False),
    Method("continued", BASE_SIDE, captioned=False),
)
PAST: tuple[Method, ...] = (
    Method("continued"),
    Method("squeezed"),
    Method("resampled"),
    Method("trained span"),
    Method("own", TABLE_SIDE),
    Method("continued", TABLE_SIDE),
    Method("squeezed", TABLE_SIDE),
    Method("own", TABLE_SIDE, captioned=False),
    Method("continued", TABLE_SIDE, captioned=False),
    Method("own", BASE_SIDE),
    Method("continued", BASE_SIDE),
    Method("own", BASE_SIDE, captioned=False),
)
METHODS: dict[int, tuple[Method, ...]] = {TABLE_SIDE: WITHIN, 688: PAST, 1024: PAST}
"""Of single calls, by side of the picture in px: the table's, 1.34 and 2 times it."""


def of_setting(side: int, strength: float) -> tuple[Method, ...]:
    """The methods of a setting: from noise only the whole frame, and the tiles that see the most."""
    if strength < 1:
        return METHODS[side]
    return tuple(method for method in METHODS[side] if not method.tile or method == Method("own", TABLE_SIDE))


SETTINGS: dict[Setting, tuple[Method, ...]] = {
    Setting(side, strength): of_setting(side, strength) for side in METHODS for strength in (0.3, 0.6, 1.0)
}


def wanted() -> list[tuple[Setting, Method]]:
    """Every picture's setting and method."""
    return [(setting, method) for setting, methods in SETTINGS.items() for method in methods]
