"""Dense attention, which the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout
from clear_core.cost import dense_pairs

from .attention import Attention


@dataclass(frozen=True)
class Full(Attention):
    """Every query sees every key."""

    @property
    def name(self) -> str:
        return "dense"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        return dense_pairs(layout)
