"""Sigmoid attention: each pair is weighed by itself, without a softmax over the row."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from clear_core import SequenceLayout
from clear_core.cost import dense_pairs

from .attention import Attention


@dataclass(frozen=True)
class Sigmoid(Attention):
    """``o_i = sum_j sigmoid(q_i . k_j / sqrt(D) + b) v_j`` over all L tokens.

    The paper states no ``b``. It is ``-log L`` here, as in Ramapuram et al. 2024 (arXiv 2409.04431): with scores around
    zero the weights of a row then sum to about 1.
    """

    @property
    def name(self) -> str:
        return "sigmoid"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        # A sigmoid far below zero is an exponential: a score in half precision would be off by percents in it.
        with torch.autocast(q.device.type, enabled=False):
            exact = torch.promote_types(q.dtype, torch.float32)
            scores = q.to(exact) @ k.to(exact).transpose(2, 3) * q.shape[-1] ** -0.5
            return (torch.sigmoid(scores - log(layout.length)) @ v.to(exact)).to(v.dtype)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        return dense_pairs(layout)
