"""Attention in which every image query sees a rectangle, or a lattice, of image keys: a rule for each axis."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout

from .attention import Attention, joined, outside, pairs_with


@dataclass(frozen=True)
class Pattern(Attention):
    """Image queries see text, and the image keys whose row and column both fit; text queries see everything."""

    @abstractmethod
    def axis(self, side: int, block: int) -> Tensor:
        """Which keys each query of one axis sees: bool (side, side), queries first."""

    @abstractmethod
    def axis_pairs(self, side: int, block: int) -> int:
        """How many that are, counted without the mask."""

    def seen(self, layout: SequenceLayout, block: int = 0) -> Tensor:
        """Which keys the image queries see: bool (N, L)."""
        return _mask(self, layout, block)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        mask = self.seen(layout, block).to(q.device)
        seen = F.scaled_dot_product_attention(q[:, :, layout.image_slice], k, v, attn_mask=mask)
        return joined(seen, F.scaled_dot_product_attention(outside(q, layout), k, v), layout)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        height, width = layout.grid
        return pairs_with(layout, self.axis_pairs(height, block) * self.axis_pairs(width, block))


# Each block of each step asks again; a laboratory has a few sizes.
@lru_cache(maxsize=32)
def _mask(pattern: Pattern, layout: SequenceLayout, block: int) -> Tensor:
    rows, columns = (pattern.axis(side, block) for side in layout.grid)
    image = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).flatten(1)
    mask = torch.ones(layout.image, layout.length, dtype=torch.bool)
    mask[:, layout.image_slice] = image
    return mask
