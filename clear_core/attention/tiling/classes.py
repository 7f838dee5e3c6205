"""Query tiles of gathered attention, in classes that share one key list and one mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ...spec import ClearSpec


@dataclass(frozen=True, eq=False)
class TileClass:
    """Query tiles with the same size and border distance, which share one key list and one mask.

    Attributes:
        size: (height, width) of the tiles in tokens.
        first: (tiles,) int64, index of each tile's first token in the row-major image.
        key_y, key_x: (keys,) int16, keys that some query of a tile sees, relative to the tile's first token.
        covered: Whether every query of a tile sees all of them.
    """

    size: tuple[int, int]
    first: Tensor
    key_y: Tensor
    key_x: Tensor
    covered: bool

    @property
    def queries(self) -> int:
        """Queries of one tile."""
        return self.size[0] * self.size[1]

    @property
    def keys(self) -> int:
        """Keys of one tile."""
        return len(self.key_y)

    def offsets(self, width: int) -> tuple[Tensor, Tensor]:
        """Indices of a tile's queries and keys relative to its first token, (queries,) and (keys,) int64.

        Args:
            width: Of the row-major image in tokens.
        """
        y, x = self._query_places()
        return (y.long() * width + x).flatten(), self.key_y.long() * width + self.key_x

    def window(self, spec: ClearSpec) -> Tensor:
        """Which keys each query of a tile sees, bool (queries, keys)."""
        y, x = self._query_places()
        return spec.sees((y - self.key_y)[:, None], (x[:, None] - self.key_x)[None]).flatten(0, 1)

    def _query_places(self) -> tuple[Tensor, Tensor]:
        """Rows (height, 1) and columns (width,) of a tile's queries, int32."""
        device = self.key_y.device
        y = torch.arange(self.size[0], dtype=torch.int32, device=device)
        return y[:, None], torch.arange(self.size[1], dtype=torch.int32, device=device)


def query_tile(device: torch.device, radius: int) -> tuple[int, int]:
    """(height, width) in tokens that query tiles should have about.

    On a CPU 16 x 16 was the fastest or within 5 % of it for every radius. Other devices pay more for each copied
    key, so their tiles share keys among more queries.
    """
    if device.type == "cpu":
        return 16, 16
    return (16, 32) if radius <= 16 else (32, 32)


def tile_slack(tile: int) -> int:
    """By how many tokens the side of a tile may differ from the one it should have."""
    return tile // 8


@lru_cache(maxsize=16)
def tile_classes(
    grid: tuple[int, int], spec: ClearSpec, tile: tuple[int, int], device: torch.device, query_rows: range | None = None
) -> tuple[TileClass, ...]:
    """All query tiles, class by class: every query in exactly one tile. Cached and never changed.

    Args:
        grid: (h, w) of the keys in tokens.
        tile: (height, width) in tokens that tiles should have about.
        query_rows: Rows of the grid that are queries; None is all of them.
    """
    rows = range(grid[0]) if query_rows is None else query_rows
    # Inference-mode tensors cannot be saved for backward, so cached tensors are built outside that mode.
    with torch.inference_mode(False):
        classes: list[TileClass] = []
        for (height, before_y, span_y), tops in _axis_classes(grid[0], rows, tile[0], spec.radius).items():
            for (width, before_x, span_x), lefts in _axis_classes(
                grid[1], range(grid[1]), tile[1], spec.radius
            ).items():
                near = _near(spec, (height, width), (before_y, before_x), (span_y, span_x), device)
                reach_y = max(height - 1 + before_y, span_y - before_y - 1)
                reach_x = max(width - 1 + before_x, span_x - before_x - 1)
                first = torch.tensor(tops, device=device)[:, None] * grid[1] + torch.tensor(lefts, device=device)
                covered = spec.sees(reach_y, reach_x)
                classes.append(TileClass((height, width), first.flatten(), *near, covered))
        return tuple(classes)


def whole_tile(classes: Sequence[TileClass], spec: ClearSpec) -> TileClass:
    """A tile of the largest size among some classes, at no place, with all the keys that it would see in a frame."""
    height, width = (max(sides) for sides in zip(*(one.size for one in classes), strict=True))
    reach, device = spec.radius - 1, classes[0].first.device
    near = _near(spec, (height, width), (reach, reach), (height + 2 * reach, width + 2 * reach), device)
    return TileClass((height, width), classes[0].first[:0], *near, covered=False)


def _near(
    spec: ClearSpec, size: tuple[int, int], before: tuple[int, int], span: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows and columns, relative to a tile's first token, of the keys that some query of it sees, int16.

    Args:
        before: Rows and columns of the neighbourhood in front of the tile.
        span: (height, width) of the neighbourhood.
    """
    y = torch.arange(span[0], dtype=torch.int32, device=device) - before[0]
    x = torch.arange(span[1], dtype=torch.int32, device=device) - before[1]
    # Distance to the nearest query: 0 inside the tile. The corners of the neighbourhood are too far.
    near = spec.sees((y - y.clamp(0, size[0] - 1))[:, None], x - x.clamp(0, size[1] - 1)).nonzero()
    return y[near[:, 0]].to(torch.int16), x[near[:, 1]].to(torch.int16)


# Tiles along one axis by (tile length, neighbours before the tile, tokens of the neighbourhood): their first tokens.
AxisClasses = dict[tuple[int, int, int], list[int]]


def _axis_classes(side: int, queries: range, tile: int, radius: int) -> AxisClasses:
    """Tiles along one axis.

    All but the last have one length near ``tile``: the one with the fewest classes, and of these the one with the
    fullest last tile, since a thin rest needs the keys of a whole one.

    Args:
        side: Tokens of the grid along the axis.
        queries: Those of them that are queries.
    """
    slack = tile_slack(tile)
    if len(queries) <= tile + slack:
        return _tiles_of_length(side, queries, len(queries), radius)
    lengths = range(tile - slack, tile + slack + 1)
    splits = {length: _tiles_of_length(side, queries, length, radius) for length in lengths}

    def cost(length: int) -> tuple[int, float, int]:
        missing = -len(queries) % length
        return len(splits[length]), missing / length, abs(length - tile)

    return splits[min(lengths, key=cost)]


def _tiles_of_length(side: int, queries: range, length: int, radius: int) -> AxisClasses:
    classes: AxisClasses = {}
    for start, stop in pairwise([*range(queries.start, queries.stop, length), queries.stop]):
        first, last = max(0, start - radius + 1), min(side, stop + radius - 1)
        classes.setdefault((stop - start, start - first, last - first), []).append(start)
    return classes
