"""Linear attention: keys and values are summed once, and every query reads the sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout
from clear_core.cost import FLUX_WIDTH

from .attention import Attention


@dataclass(frozen=True)
class Linear(Attention):
    """``o_i = f(q_i) S / (f(q_i) z)`` with ``S = sum_j f(k_j)^T v_j`` and ``z = sum_j f(k_j)`` over all L tokens.

    The paper does not state ``f``; it is ``elu + 1`` here (Katharopoulos et al. 2020, arXiv 2006.16236).

    Attributes:
        width: Heads times head size that the count goes by, as the paper's does. Sums are kept for each head, so this
            attention itself takes ``head_size + 1`` where the count has ``width + 1``.
    """

    width: int = FLUX_WIDTH

    @property
    def name(self) -> str:
        return "linear"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        # Sums of positive numbers over all tokens lose too much in half precision.
        with torch.autocast(q.device.type, enabled=False):
            exact = torch.promote_types(q.dtype, torch.float32)
            queries, keys = F.elu(q.to(exact)) + 1, F.elu(k.to(exact)) + 1
            # z is the sum for a value that is 1 everywhere.
            sums = keys.transpose(2, 3) @ F.pad(v.to(exact), (0, 1), value=1.0)
            read = queries @ sums
            return (read[..., :-1] / read[..., -1:]).to(v.dtype)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        """As many as if each token saw ``width + 1`` keys: the operations are ``4 * L * width * (width + 1)``."""
        return layout.length * (self.width + 1)
