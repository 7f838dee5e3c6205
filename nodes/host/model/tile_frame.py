"""Where a call of the model lies in the whole frame, if the frame is sampled in tiles."""

from __future__ import annotations

from dataclasses import dataclass

from ....clear_core.sdedit import Tile

KEY = "clear_frame_part"
"""Key of a :class:`FramePart` in ``transformer_options``; absent if the call is the whole frame."""


@dataclass(frozen=True)
class FramePart:
    """A tile and the frame it is a part of.

    Attributes:
        grid: (rows, columns) of the whole frame in tokens.
        tile: The part that this call computes.
    """

    grid: tuple[int, int]
    tile: Tile
