"""The position of a call of the model in the whole frame, if the frame is sampled in tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....clear_core.sdedit import Tile

KEY = "clear_frame_part"
"""Key of a :class:`FramePart` in ``transformer_options``; absent if the call is the whole frame."""


@dataclass
class TileRun:
    """A sampling run in tiles.

    Attributes:
        asked: Whether the model has asked its position embedder in this run; a cache answers later calls without it.
    """

    asked: bool = False


@dataclass(frozen=True)
class FramePart:
    """A tile and the frame it is a part of.

    Attributes:
        grid: (rows, columns) of the whole frame in tokens.
        tile: The part that this call computes.
        run: What the calls of one run share.
    """

    grid: tuple[int, int]
    tile: Tile
    run: TileRun = field(default_factory=TileRun, compare=False)
