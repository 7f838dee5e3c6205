"""Neighbourhood attention: a square around each image query, moved inside at the border."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import check_size
from .pattern import Pattern


@dataclass(frozen=True)
class Neighbourhood(Pattern):
    """The ``size`` x ``size`` keys around the query; at a border the square stays whole and lies inside the image, so
    every query sees as many (Hassani et al. 2023, arXiv 2204.07143; NATTEN's rule).

    Attributes:
        size: Side of the square in tokens, odd. A square larger than the image is the image. The paper's table 1 has
            this attention without a size or a figure.
    """

    size: int = 15

    def __post_init__(self) -> None:
        check_size("the side of a neighbourhood", self.size)
        if self.size % 2 == 0:
            raise ValueError(f"the side of a neighbourhood is {self.size}; expected an odd number, with a middle.")

    @property
    def name(self) -> str:
        return f"neighbourhood {self.size} x {self.size}"

    def axis(self, side: int, block: int) -> Tensor:
        reach, places = min(self.size, side), torch.arange(side)
        start = (places - self.size // 2).clamp(0, side - reach)[:, None]
        return (places >= start) & (places < start + reach)

    def axis_pairs(self, side: int, block: int) -> int:
        return side * min(self.size, side)
