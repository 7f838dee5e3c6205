"""PixArt-Sigma's key compression: image keys and values are shrunk by a strided depthwise convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout

from .attention import Attention, check_size, joined, outside, pairs_with


@dataclass(frozen=True)
class Compressed(Attention):
    """Image queries see text and the compressed image; text queries see the image as it is (arXiv 2403.04692).

    Attributes:
        size: Side in tokens of the square that becomes one key; it must divide both sides of the grid. The paper's
            count has 4.
    """

    size: int = 4

    def __post_init__(self) -> None:
        check_size("the side of a compressed square", self.size)

    @property
    def name(self) -> str:
        return f"PixArt-Sigma {self.size} x {self.size}"

    def first_weight(self, heads: int, head_size: int) -> Tensor:
        """(heads, head_size, size, size): a weight for each channel, for keys and values alike. Starts as the mean."""
        return torch.full((heads, head_size, self.size, self.size), 1 / self.size**2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        rows, columns = self._cells(layout)
        assert weight is not None

        def with_compressed(tokens: Tensor) -> Tensor:
            exact = torch.promote_types(tokens.dtype, torch.float32)
            image = tokens[:, :, layout.image_slice].to(exact)
            cells = image.unflatten(2, (rows, self.size, columns, self.size))
            small = torch.einsum("bhridjc,hcij->bhrdc", cells, weight.to(exact))
            return torch.cat([outside(tokens, layout), small.flatten(2, 3).to(tokens.dtype)], dim=2)

        seen = F.scaled_dot_product_attention(q[:, :, layout.image_slice], with_compressed(k), with_compressed(v))
        return joined(seen, F.scaled_dot_product_attention(outside(q, layout), k, v), layout)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        rows, columns = self._cells(layout)
        return pairs_with(layout, layout.image * rows * columns)

    def _cells(self, layout: SequenceLayout) -> tuple[int, int]:
        height, width = layout.grid
        if height % self.size or width % self.size:
            raise ValueError(
                f"the grid is {height} x {width} tokens; expected sides that {self.size} divides, the side of a "
                "compressed square. Choose another size of square or of picture."
            )
        return height // self.size, width // self.size
