"""Swin's windows: squares that do not overlap, moved by half a window in every second block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import check_size
from .pattern import Pattern


@dataclass(frozen=True)
class Swin(Pattern):
    """Image queries see the keys of their own window (Liu et al. 2021, arXiv 2103.14030).

    In blocks of odd index the image is rolled by half a window before it is cut, and what comes from opposite borders
    does not see each other. That is the same as windows moved by half their side and cut by the borders, which this
    computes. An axis that one window covers is not moved. A window cut by the border is not padded.

    Attributes:
        size: Side of a window in tokens. The paper's count has 16, and takes every block as one without the shift; a
            shifted block has fewer pairs.
    """

    size: int = 16

    def __post_init__(self) -> None:
        check_size("the side of a window", self.size)

    @property
    def name(self) -> str:
        return f"Swin {self.size} x {self.size}"

    def _shift(self, side: int, block: int) -> int:
        return self.size // 2 if block % 2 and side > self.size else 0

    def axis(self, side: int, block: int) -> Tensor:
        window = (torch.arange(side) - self._shift(side, block)).div(self.size, rounding_mode="floor")
        return window[:, None] == window

    def axis_pairs(self, side: int, block: int) -> int:
        first = self._shift(side, block)
        return first**2 + sum(min(self.size, side - start) ** 2 for start in range(first, side, self.size))
