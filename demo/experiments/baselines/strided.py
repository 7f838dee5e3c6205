"""Strided attention: each image query sees every s-th row and column of the image, from its own on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import check_size
from .pattern import Pattern


@dataclass(frozen=True)
class Strided(Pattern):
    """Keys of the query's own residue class in rows and in columns (after Child et al. 2019, arXiv 1904.10509).

    The paper does not say whether it strides in two dimensions or along the sequence; every 16th token of the sequence
    would be as many.

    Attributes:
        size: The stride in tokens, along both axes. The paper's count has 4.
    """

    size: int = 4

    def __post_init__(self) -> None:
        check_size("the stride", self.size)

    @property
    def name(self) -> str:
        return f"strided {self.size}"

    def axis(self, side: int, block: int) -> Tensor:
        places = torch.arange(side)
        return (places[:, None] - places) % self.size == 0

    def axis_pairs(self, side: int, block: int) -> int:
        return sum(len(range(first, side, self.size)) ** 2 for first in range(self.size))
