"""Where a call of the model lies in the whole frame, when the frame is sampled in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....clear_core.sdedit import Tile

KEY = "clear_frame_part"
"""Key of a :class:`FramePart` in ``transformer_options``; absent where the call is the whole frame."""


@dataclass(frozen=True)
class FramePart:
    """A tile and the frame it is a part of.

    Attributes:
        grid: (rows, columns) of the whole frame in tokens.
        tile: The part that this call computes.
    """

    grid: tuple[int, int]
    tile: Tile

    def move_positions(self, args: dict[str, Any]) -> dict[str, Any]:
        """Give the tile's image tokens the positions they have in the frame (a ``post_input`` patch).

        Reference tokens, which follow the image's, stay where they are.
        """
        ids = args["img_ids"].clone()
        image = ids[:, : self.tile.height * self.tile.width]
        image[..., 1] += self.tile.y
        image[..., 2] += self.tile.x
        return {**args, "img_ids": ids}
