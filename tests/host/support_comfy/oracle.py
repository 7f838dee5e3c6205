"""What CLEAR attention should give inside a stock model: the mask written out pair by pair, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def window_mask(text: int, grid: tuple[int, int], references: int, radius: int) -> Tensor:
    """bool (L, L), True where a key is seen, from the method's own sentences."""
    height, width = grid
    places = [(y, x) for y in range(height) for x in range(width)]
    length = text + len(places) + references
    mask = torch.ones(length, length, dtype=torch.bool)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            mask[text + i, text + j] = (y - v) ** 2 + (x - u) ** 2 < radius**2
    return mask


def with_oracle_attention(patcher: Any, mask: Tensor, scale: float | None = None) -> Any:
    """A clone of a stock model whose blocks attend with ``mask`` and ``scale``, in float64."""
    def attend(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        scores = q.double() @ k.double().transpose(-1, -2) * factor
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return (weights @ v.double()).to(q.dtype).transpose(1, 2).flatten(2)

    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attend
    return clone
