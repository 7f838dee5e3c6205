"""A square table of sine and cosine positions, as SD3 has, and the same formula between its places and past its end.

Source: the stored tables are those of ``get_2d_sincos_pos_embed`` in
``diffusers.models.embeddings`` and ``comfy.ldm.modules.diffusionmodules.mmdit``: the first half of a position's numbers
tells the column, the second half the row, each with sines before cosines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LONGEST = 10000.0
"""Ratio of the slowest rate to the fastest, as in the formula."""

TOLERANCE = 2**-7
"""Largest distance from the formula. Tables are stored in bfloat16 or finer, whose rounding is at most 2**-9; the rest
is for the fit of first and step."""

CHECKED_ROWS = 16
"""Rows of a table that are compared with the formula wholly."""


@dataclass(frozen=True)
class PositionTable:
    """A table that is the formula to its rounding.

    Attributes:
        columns, rows: (side, width / 2) numbers of a place by its column and by its row, as stored.
        first: Position of place 0, in radians of the fastest rate.
        step: From one place to the next.
    """

    columns: Tensor
    rows: Tensor
    first: float
    step: float

    @classmethod
    def read(cls, table: Tensor) -> PositionTable:
        """Find the formula of a stored table.

        Args:
            table: (1, side * side, width), row by row; any float dtype, any device.

        Raises:
            ValueError: It is not square, or not the formula.
        """
        side, width = math.isqrt(table.shape[1]), table.shape[2]
        if side**2 != table.shape[1] or side < 2 or width % 4:
            raise ValueError(
                f"the table of positions has shape {tuple(table.shape)}; expected (1, side * side, width)."
            )
        places = table[0].unflatten(0, (side, side))
        columns, rows = places[0, :, : width // 2].clone(), places[:, 0, width // 2 :].clone()
        sines, cosines = (columns[:, index].double() for index in (0, width // 4))
        angles = torch.atan2(sines, cosines)
        turns = angles.diff()
        first, step = angles[0].item(), torch.remainder(turns + math.pi, 2 * math.pi).sub(math.pi).mean().item()
        found = cls(columns, rows, first, step)
        line = found.formula(torch.arange(side, device=table.device))
        # A table of a real model has 10**8 numbers; some of its rows tell a learned one as well.
        some = torch.arange(0, side, -(-side // CHECKED_ROWS), device=table.device)
        away = max(
            *((line - stored).abs().max().item() for stored in (columns, rows)),
            (places[some, :, : width // 2] - columns).abs().max().item(),
            (places[some, :, width // 2 :] - rows[some, None]).abs().max().item(),
        )
        if not away <= TOLERANCE:
            raise ValueError(
                f"the model's table of positions is not the formula of sines and cosines, but up to {away:.3g} away "
                "from it, so there are no positions between its places."
            )
        return found

    @property
    def side(self) -> int:
        """Places along a side of the table."""
        return self.rows.shape[0]

    @property
    def native(self) -> int:
        """Tokens a side that the formula was made for, at most the table's: of SD3's 64, which are 1024 px."""
        return max(1, min(self.side, round(abs(self.step) * self.side)))

    def to(self, device: torch.device) -> PositionTable:
        """The same on a device."""
        return replace(self, columns=self.columns.to(device), rows=self.rows.to(device))

    def middle(self, count: int) -> Tensor:
        """(count,) places of a side of ``count`` tokens, whose middle is the table's; below 0 and past its end too."""
        return torch.arange(count, device=self.rows.device) + (self.side - count) // 2

    def spread(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Places of a grid's rows and of its columns: the longer side spans the native part, the other in its step.

        Of what was tried on a model whose table ends, it draws best (``demo/experiments/positions.json``).
        """
        step = self.native / max(grid)
        rows, columns = (
            (torch.arange(count, device=self.rows.device, dtype=torch.float64) + (1 - count) / 2) * step
            + (self.side - 1) / 2
            for count in grid
        )
        return rows, columns

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Positions of a rectangle of tokens: as stored where the table has them, else by the formula.

        Args:
            rows: (R,) and columns: (C,), places along the table's sides; may lie between places and outside.

        Returns:
            (1, R * C, width), in the table's dtype.
        """
        across, down = self.line(self.columns, columns), self.line(self.rows, rows)
        shape = (len(rows), len(columns), -1)
        return torch.cat([across[None].expand(shape), down[:, None].expand(shape)], dim=-1).flatten(0, 1)[None]

    def line(self, stored: Tensor, places: Tensor) -> Tensor:
        """(N, width / 2) numbers of places along one side."""
        nearest = places.round().long().clamp(0, self.side - 1)
        return torch.where((nearest == places)[:, None], stored[nearest], self.formula(places).to(stored.dtype))

    def formula(self, places: Tensor) -> Tensor:
        """(N, width / 2) numbers of places along a side, float32, by the formula alone."""
        rates = torch.arange(self.rows.shape[1] // 2, dtype=torch.float64, device=places.device)
        rates = LONGEST ** -(rates / len(rates))
        angles = (self.first + self.step * places.double())[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()
