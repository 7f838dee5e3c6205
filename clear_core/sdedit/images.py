"""Padding of image tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def reflect_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads (B, H, W, C) images by reflection at the bottom and on the right, to (B, *size, C)."""
    for dim, wanted in ((1, size[0]), (2, size[1])):
        length = images.shape[dim]
        if wanted == length:
            continue
        # Forth and back without repeating the border, as often as needed.
        index = torch.arange(wanted, device=images.device) % max(1, 2 * length - 2)
        images = images.index_select(dim, torch.minimum(index, 2 * length - 2 - index).clamp(min=0))
    return images
