"""The shape of the window: the parameters of CLEAR attention (arXiv 2412.16112, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

from .wording import quoted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClearSpec:
    """Shape of the window of one image query.

    An image query at token (y, x) sees the image tokens with ``dy**2 + dx**2 < radius**2`` (strictly
    less), all text and all reference tokens, and, when ``down_factor`` is above 1, every pooled token.

    With an *overview*, which is not the paper's, it sees pooled tokens for what lies outside its window: the score of
    each gets the natural logarithm of the number of its cell's tokens outside, and a cell without such tokens is not
    seen. What is outside then keeps about its share of the softmax, without any training; with a ``down_factor`` of 1
    the result is dense attention.

    Attributes:
        radius: Window radius in tokens (one token is 16 x 16 pixels), 1 or more. Released: 8, 16, 32.
        down_factor: Side in tokens of the square cells that are pooled to one extra key each;
            1 means no pooled keys. Released: 1 and 4.
        overview: Whether pooled keys stand for what is outside the window.

    Raises:
        ValueError: A number is not an integer of at least 1, or ``overview`` neither True nor False.
    """

    radius: int
    down_factor: int = 1
    overview: bool = False

    def __post_init__(self) -> None:
        for name in ("radius", "down_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {quoted(value)}; expected an integer of at least 1.")
        if not isinstance(self.overview, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise ValueError(f"overview is {quoted(self.overview)}; expected True or False.")

    @property
    def pools(self) -> bool:
        """Whether image queries also see pooled tokens."""
        return self.down_factor > 1 or self.overview

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of pooled cells on ``grid`` = (h, w); a cell cut by the border counts. (0, 0) without."""
        d = self.down_factor
        return (-(-grid[0] // d), -(-grid[1] // d)) if self.pools else (0, 0)

    @property
    def inside(self) -> int:
        """Squared distances in tokens below this value are seen."""
        return self.radius**2

    @overload
    def sees(self, dy: int, dx: int) -> bool: ...
    @overload
    def sees(self, dy: Tensor, dx: Tensor) -> Tensor: ...
    def sees(self, dy: int | Tensor, dx: int | Tensor) -> bool | Tensor:
        """Whether an image query sees the image token ``dy`` rows and ``dx`` columns away; tensors are broadcast."""
        return dy * dy + dx * dx < self.inside

    def covers(self, grid: tuple[int, int]) -> bool:
        """Whether every image query of ``grid`` = (h, w) sees the whole grid."""
        return self.sees(grid[0] - 1, grid[1] - 1)

    def is_dense(self, grid: tuple[int, int]) -> bool:
        """Whether nothing differs from dense attention on ``grid`` = (h, w): windows cover it, and nothing is added."""
        return self.covers(grid) and (self.overview or not self.pools)

    def within(self, grid: tuple[int, int]) -> ClearSpec:
        """The same windows on ``grid`` = (h, w), with a radius whose square fits a 32-bit integer."""
        return self if self.radius <= sum(grid) else replace(self, radius=sum(grid))

    def __str__(self) -> str:
        word = "overview" if self.overview else "pooled"
        pooled = f", {word} {self.down_factor} x {self.down_factor}" if self.pools else ""
        return f"radius {self.radius}{pooled}"
