"""CLEAR's own windows among the attentions of the comparison."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention.pool import mean_weight
from clear_core.cost import clear_pairs

from .attention import Attention


@dataclass(frozen=True)
class Windows(Attention):
    """Circular windows with or without pooled keys (paper, sections 3.2 and 3.3).

    Attributes:
        spec: Window radius and down factor.
    """

    spec: ClearSpec

    @property
    def name(self) -> str:
        return f"CLEAR {self.spec}"

    def first_weight(self, heads: int, head_size: int) -> Tensor | None:
        """The (d, d) pooling weight as the mean; None without pooled keys, and for an overview."""
        return mean_weight(self.spec.down_factor) if self.spec.pools and not self.spec.overview else None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        out = clear_attention(
            q, k, v, grid=layout.grid, spec=self.spec, spatial_weight=weight, reference_tokens=layout.reference
        )
        assert isinstance(out, Tensor)
        return out

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        return clear_pairs(layout, self.spec)
