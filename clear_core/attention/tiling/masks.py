"""The masks of gathered attention: one for a tile with all its neighbours, from which those of all classes are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...spec import ClearSpec
from ..bias import additive
from .classes import TileClass, whole_tile

ALIGNMENT = 16
"""A card's masked attention copies a mask whose rows do not begin at multiples of this many bytes."""


def nbytes(tensor: Tensor | None) -> int:
    """Memory that a tensor keeps."""
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


@dataclass(frozen=True, eq=False)
class WholeMask:
    """The mask of a tile with all its neighbours.

    Attributes:
        size: (height, width) of the tile.
        keys: Number of its window's keys.
        ahead: Number of keys in front of the window's that every query sees.
        mask: (queries, ahead + keys): what is added to the scores; or bool, True if a query sees a key.
        places: (rows, columns) int32, index of each neighbour among the keys, -1 for the corners that nobody sees;
            the tile's first token is at ``origin``.
        origin: (row, column).
    """

    size: tuple[int, int]
    keys: int
    ahead: int
    mask: Tensor
    places: Tensor
    origin: tuple[int, int]

    @classmethod
    def of(cls, classes: Sequence[TileClass], spec: ClearSpec, ahead: int, dtype: torch.dtype | None) -> WholeMask:
        """The mask that covers all classes of a grid.

        Args:
            dtype: Of what is added to the scores; None gives booleans.
        """
        tiles = whole_tile(classes, spec)
        window = F.pad(tiles.window(spec), (ahead, 0), value=True)
        reach = spec.radius - 1
        height, width = (side + 2 * reach for side in tiles.size)
        places = torch.full((height, width), -1, dtype=torch.int32, device=window.device)
        numbers = torch.arange(tiles.keys, dtype=torch.int32, device=window.device)
        places[tiles.key_y.long() + reach, tiles.key_x.long() + reach] = numbers
        mask = window if dtype is None else _aligned(additive(window, dtype))
        return cls(tiles.size, tiles.keys, ahead, mask, places, (reach, reach))

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return nbytes(self.mask) + nbytes(self.places)

    def cut(self, tiles: TileClass) -> MaskCut:
        """The part of a class, whose tiles are as large as this one or smaller."""
        height, width = tiles.size
        device = self.mask.device
        rows = None
        if tiles.size != self.size:
            y = torch.arange(height, dtype=torch.int32, device=device)[:, None] * self.size[1]
            rows = (y + torch.arange(width, dtype=torch.int32, device=device)).flatten()
        if tiles.keys == self.keys:
            return MaskCut(self.mask, rows, None, self.ahead + tiles.keys)
        window = self.places[tiles.key_y.long() + self.origin[0], tiles.key_x.long() + self.origin[1]]
        columns = torch.cat([torch.arange(self.ahead, dtype=torch.int32, device=device), window + self.ahead])
        # Up to the next aligned row, any column will do.
        filled = F.pad(columns, (0, -len(columns) % (ALIGNMENT // self.mask.element_size())))
        return MaskCut(self.mask, rows, filled, len(columns))


@dataclass(frozen=True, eq=False)
class MaskCut:
    """The part of a whole mask that belongs to one class.

    Attributes:
        whole: (queries, keys) of a tile with all its neighbours.
        rows, columns: int32, what is cut out, in this order; None is everything.
        keys: Number of columns that count; the rest fills the rows up.
        is_kept: Whether ``whole`` is this class's own.
    """

    whole: Tensor
    rows: Tensor | None
    columns: Tensor | None
    keys: int
    is_kept: bool = False

    @property
    def mask(self) -> Tensor:
        """The part itself; made anew in each call unless nothing is left to cut."""
        mask = self.whole if self.rows is None else self.whole.index_select(0, self.rows)
        return mask if self.columns is None else mask.index_select(1, self.columns)[:, : self.keys]

    @property
    def kept_bytes(self) -> int:
        """Memory that keeping it takes besides the whole one."""
        if self.rows is None and self.columns is None:
            return 0
        rows = len(self.whole) if self.rows is None else len(self.rows)
        columns = self.whole.shape[1] if self.columns is None else len(self.columns)
        return rows * columns * self.whole.element_size()

    def kept(self) -> MaskCut:
        """The same with nothing left to cut."""
        return replace(self, whole=self.mask, rows=None, columns=None, is_kept=self.kept_bytes > 0)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, a whole mask that others share not counted."""
        return nbytes(self.rows) + nbytes(self.columns) + (nbytes(self.whole) if self.is_kept else 0)


def _aligned(mask: Tensor) -> Tensor:
    """The same values in rows that begin at multiples of ``ALIGNMENT``."""
    columns = mask.shape[1]
    return F.pad(mask, (0, -columns % (ALIGNMENT // mask.element_size())))[:, :columns]
