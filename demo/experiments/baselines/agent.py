"""Agent attention: a few means of queries look at the image, and image queries look at them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout
from clear_core.attention.pool import mean_weight, pool_tokens

from .attention import Attention, check_size, joined, outside, pairs_with


@dataclass(frozen=True)
class Agent(Attention):
    """``A`` is the mean of image queries over squares, ``V_A = softmax(A K^T / sqrt(D)) V`` over image keys; image
    queries attend to text and to ``(A, V_A)`` (Han et al. 2023, arXiv 2312.08874, without its biases and convolution).

    Attributes:
        size: Side in tokens of the square that one agent stands for; a square cut by the border is the mean of what is
            left of it. The paper's count has 4.
    """

    size: int = 4

    def __post_init__(self) -> None:
        check_size("the side of an agent's square", self.size)

    @property
    def name(self) -> str:
        return f"agent {self.size} x {self.size}"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        image = layout.image_slice
        agents = pool_tokens(q[:, :, image], layout.grid, mean_weight(self.size))
        values = F.scaled_dot_product_attention(agents, k[:, :, image], v[:, :, image])
        keys = torch.cat([outside(k, layout), agents], dim=2)
        seen = F.scaled_dot_product_attention(q[:, :, image], keys, torch.cat([outside(v, layout), values], dim=2))
        return joined(seen, F.scaled_dot_product_attention(outside(q, layout), k, v), layout)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        height, width = layout.grid
        agents = -(-height // self.size) * -(-width // self.size)
        return pairs_with(layout, 2 * agents * layout.image)
