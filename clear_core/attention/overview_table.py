"""What an overview adds to the scores of its pooled keys, as a small table by the place of a cell around a query.

:func:`.overview.tokens_outside` counts the same token by token, for every pair of a query and a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import ClearSpec
from .tiling.kept import KeptValues
from .tiling.masks import nbytes

MOST_BYTES = 16 * 2**20
"""Memory in bytes for all tables together; that of radius 32 and cells of 4 x 4 takes 0.3 MiB with those of its
places."""


# Not every device knows all of these operations.
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Axis:
    """Places of cells around queries along one axis of the grid, as indices from 0.

    A cell whose first token lies ``lowest`` tokens from the query, or farther before it, has place 0; one that lies
    ``last`` further, or farther still, has the last place. Cells at both of these are outside the window whatever the
    other axis says, or not in the grid.

    Attributes:
        side: Tokens of the grid.
        cell: Tokens of a whole cell, at most ``side``.
        cut: Tokens of the last cell if the border cuts it, else 0.
        lowest: Distance in tokens from a query to the first token of a cell at place 0; below 0.
        last: The last place.
    """

    side: int
    cell: int
    cut: int
    lowest: int
    last: int

    @classmethod
    def of(cls, side: int, spec: ClearSpec) -> Axis:
        cell = min(spec.down_factor, side)
        # Past the grid there are no cells, so a wide window's table is no larger than its grid.
        lowest = -min(spec.radius + cell - 1, side)
        return cls(side, cell, side % cell, lowest, min(spec.radius, side) - lowest)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of a whole cell, and of one that is cut if there is one. Each size has places of its own."""
        return (self.cell, self.cut) if self.cut else (self.cell,)

    @property
    def places(self) -> int:
        return len(self.sizes) * (self.last + 1)

    def starts(self) -> Tensor:
        """(cells,) int32: first token of each, counted so that less the query's it is the place, before its bounds."""
        return torch.arange(0, self.side, self.cell, dtype=torch.int32, device=_CPU) - self.lowest

    def bases(self) -> Tensor:
        """(cells,) int32: what is added to the place of a cell, for those that are cut."""
        bases = torch.zeros(-(-self.side // self.cell), dtype=torch.int32, device=_CPU)
        if self.cut:
            bases[-1] = self.last + 1
        return bases

    def tokens(self) -> Tensor:
        """(cells,) int32: number of tokens of each along this axis."""
        tokens = torch.full((-(-self.side // self.cell),), self.cell, dtype=torch.int32, device=_CPU)
        if self.cut:
            tokens[-1] = self.cut
        return tokens

    def of_queries(self) -> Tensor:
        """(side, cells) int32: the place of each cell for each query."""
        queries = torch.arange(self.side, dtype=torch.int32, device=_CPU)
        return (self.starts() - queries[:, None]).clamp_(0, self.last) + self.bases()


@dataclass(frozen=True, eq=False)
class OverviewTable:
    """The table of one spec and grid, with what finds a pair in it.

    The pair of query (y, x) and the cell in row i and column j is at ``logs[rows[y, i], columns[x, j]]``. A kernel
    finds it in the flat table: with s and t the ``starts`` of cell c, at ``min(max(s - y, 0), last_y) * places_x +
    min(max(t - x, 0), last_x) + bases[c]``.

    Attributes:
        logs: (row places, column places) float32: log of the number of the cell's tokens outside, -inf for 0.
        rows: (h, cell rows) int32.
        columns: (w, cell columns) int32.
        starts: (2, cells) int32: s and t, cells row by row.
        bases: (cells,) int32.
        whole_logs: (cells,) float32: log of the number of all tokens of a cell.
        last: (last_y, last_x).
        all_seen: Whether some window of the grid leaves nothing outside.
    """

    logs: Tensor
    rows: Tensor
    columns: Tensor
    starts: Tensor
    bases: Tensor
    whole_logs: Tensor
    last: tuple[int, int]
    all_seen: bool

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        tensors = (self.logs, self.rows, self.columns, self.starts, self.bases, self.whole_logs)
        return sum(nbytes(one) for one in tensors)


TABLES: KeptValues[OverviewTable] = KeptValues(MOST_BYTES)


def overview_table(grid: tuple[int, int], spec: ClearSpec, device: torch.device) -> OverviewTable:
    """The table for windows on ``grid`` = (h, w); shared and never changed."""
    return TABLES.get((grid, spec, device), lambda: _make(grid, spec, device))


def _make(grid: tuple[int, int], spec: ClearSpec, device: torch.device) -> OverviewTable:
    # Inference-mode tensors cannot be saved for backward, so kept tensors are built outside that mode.
    with torch.inference_mode(False):
        y, x = (Axis.of(side, spec) for side in grid)
        tokens = y.tokens()[:, None] * x.tokens()
        return OverviewTable(
            logs=_counts(y, x, spec).float().log().to(device),
            rows=y.of_queries().to(device),
            columns=x.of_queries().to(device),
            starts=torch.cartesian_prod(y.starts(), x.starts()).T.contiguous().to(device),
            bases=(y.bases()[:, None] * x.places + x.bases()).flatten().to(device),
            whole_logs=tokens.float().log().flatten().to(device),
            last=(y.last, x.last),
            # The query in the middle has the nearest farthest token.
            all_seen=spec.sees(grid[0] // 2, grid[1] // 2),
        )


def _counts(y: Axis, x: Axis, spec: ClearSpec) -> Tensor:
    """(row places, column places) int32: tokens of the cell outside the window."""
    dy, dx = (
        torch.arange(axis.lowest, axis.lowest + axis.last + axis.cell, dtype=torch.int32, device=_CPU)
        for axis in (y, x)
    )
    # Sums over rectangles by differences of sums from the corner.
    seen = spec.sees(dy[:, None], dx).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    seen = torch.nn.functional.pad(seen, (1, 0, 1, 0))
    parts: list[Tensor] = []
    for height in y.sizes:
        rows = seen[height : height + y.last + 1] - seen[: y.last + 1]
        across = [height * width - (rows[:, width : width + x.last + 1] - rows[:, : x.last + 1]) for width in x.sizes]
        parts.append(torch.cat(across, dim=1))
    return torch.cat(parts)
