"""All kinds of attention of the comparison, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clear_core import ClearSpec

from .agent import Agent
from .attention import Attention
from .compressed import Compressed
from .full import Full
from .linear import Linear
from .neighbourhood import Neighbourhood
from .sigmoid import Sigmoid
from .strided import Strided
from .swin import Swin
from .windows import Windows

POOLED = 4
"""Down factor of the released weights with pooled keys."""

Grid = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """One kind of attention.

    Attributes:
        make: The attention of a size; kinds without a size take any. An attention is the function
            ``(q, k, v, layout, block, weight) -> out``, and has ``first_weight`` (what is trained) and ``pairs``.
        sizes: The sizes that differ on a grid of (h, w) tokens, smallest first; none for kinds without a size.
        size: The size that the paper's count of table 2 has, of CLEAR the smallest. Neighbourhoods have no figure
            there; theirs is the nearest to the 256 keys of the others.
    """

    make: Callable[[int], Attention]
    sizes: Callable[[Grid], Sequence[int]] = lambda grid: ()
    size: int = 0

    @property
    def paper(self) -> Attention:
        """The attention at the size of the paper."""
        return self.make(self.size)


def _sides(grid: Grid) -> range:
    return range(1, max(grid) + 1)


def _divisors(grid: Grid) -> list[int]:
    return [side for side in range(1, min(grid) + 1) if grid[0] % side == grid[1] % side == 0]


def _odd_sides(grid: Grid) -> range:
    return range(1, max(grid) + 2, 2)


def _radii(grid: Grid) -> list[int]:
    covering = next(radius for radius in range(1, sum(grid) + 1) if ClearSpec(radius).covers(grid))
    return list(range(1, covering + 1))


KINDS: dict[str, Kind] = {
    "dense": Kind(lambda _: Full()),
    "sigmoid": Kind(lambda _: Sigmoid()),
    "linear": Kind(lambda _: Linear()),
    "PixArt-Sigma": Kind(Compressed, _divisors, 4),
    "agent": Kind(Agent, _sides, 4),
    "strided": Kind(Strided, _sides, 4),
    "Swin": Kind(Swin, _sides, 16),
    "neighbourhood": Kind(Neighbourhood, _odd_sides, 15),
    "CLEAR": Kind(lambda radius: Windows(ClearSpec(radius)), _radii, 8),
    "CLEAR pooled": Kind(lambda radius: Windows(ClearSpec(radius, POOLED)), _radii, 8),
}
