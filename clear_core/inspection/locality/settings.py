"""What is measured of a model's locality, and at which values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...number_checks import check_number
from ...settings import TRAINING_FREE
from ...spec import ClearSpec
from ...wording import quoted
from .distances import limits_for
from .mass import check_query, radii_for

PARTS = ("mass", "distances", "windows")
"""What can be measured: attention mass, clipped rotary distances, the cost of windows in each block."""

LEVELS = (0.25, 0.5, 0.75, 1.0)

BLOCKS_OF_A_DENSE_ONE = 8
"""Unless a number is named, one block of so many is proposed to stay dense, and at least one."""


@dataclass(frozen=True)
class LocalitySettings:
    """What is measured.

    Attributes:
        spec: The windows whose cost is measured, and that the proposal is for.
        parts: Some of :data:`PARTS`.
        levels: Noise levels, above 0 to 1.
        radii: Of the circles in which attention mass is counted, in tokens; empty: 4, 8 ... until one covers the grid.
        limits: Distances in tokens to which positions are clipped; empty: 1, 2, 4 ... below the longer side.
        queries: Image queries whose mass is counted, a seeded sample; 0 is all.
        query: (y, x) in tokens of the query whose maps are kept; None is the middle.
        count: Number of blocks to propose; None is one of eight, or as ``share`` says.
        share: Instead of a number, the share of the error of windows that the proposed blocks hold, 0 to 1.
        guidance: Guidance scale of the model's own input; None is the family's usual one.
        seed: Of noise and of the sample of queries.

    Raises:
        ValueError: A value is out of range.
    """

    spec: ClearSpec = TRAINING_FREE
    parts: tuple[str, ...] = PARTS
    levels: tuple[float, ...] = LEVELS
    radii: tuple[int, ...] = ()
    limits: tuple[int, ...] = ()
    queries: int = 1024
    query: tuple[int, int] | None = None
    count: int | None = None
    share: float | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_list("parts", self.parts, PARTS)
        _check_list("levels", self.levels)
        for level in self.levels:
            check_number("levels", level, 0, 1, above=True)
        for name, values in (("radii", self.radii), ("limits", self.limits)):
            for value in values:
                check_number(name, value, 1, whole=True)
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} is {quoted(values)}; expected rising numbers, each once.")
        check_number("queries", self.queries, 0, whole=True)
        check_number("seed", self.seed, 0, whole=True)
        if self.guidance is not None:
            check_number("guidance", self.guidance)
        if self.count is not None and self.share is not None:
            raise ValueError(f"count is {self.count} and share {self.share}; give one of the two.")
        if self.count is not None:
            check_number("count", self.count, 0, whole=True)
        if self.share is not None:
            check_number("share", self.share, 0, 1)

    def on(self, grid: tuple[int, int], blocks: int) -> LocalitySettings:
        """The settings for a grid (h, w) in tokens and a number of blocks: what was left open is filled in.

        Raises:
            ValueError: They do not fit; the sentence says what to change.
        """
        if self.spec.is_dense(grid):
            raise ValueError(
                f"{self.spec} covers the whole grid of {grid[0]} x {grid[1]} tokens, so that windows cost nothing; "
                "set a smaller radius, or take samples of larger pictures."
            )
        query = self.query or (grid[0] // 2, grid[1] // 2)
        check_query(query, grid)
        count = self.count
        if self.share is None:
            count = max(1, blocks // BLOCKS_OF_A_DENSE_ONE) if count is None else count
            check_number("count", count, 0, blocks, whole=True)
        return replace(
            self,
            radii=self.radii or tuple(radii_for(grid)),
            limits=self.limits or tuple(limits_for(grid)),
            query=query,
            count=count,
        )

    @property
    def measured(self) -> dict[str, Any]:
        """The values that a measurement depends on, ready for JSON; how many blocks are proposed is none of them."""
        return {name: value for name, value in asdict(self).items() if name not in ("parts", "count", "share")}


def _check_list(name: str, values: Sequence[Any], known: Sequence[Any] | None = None) -> None:
    if not values or len(set(values)) != len(values) or not all(known is None or value in known for value in values):
        expected = f"one or more of {', '.join(map(str, known))}" if known else "at least one number"
        raise ValueError(f"{name} is {quoted(values)}; expected {expected}, each once.")
