"""Measures of one large picture: its layout against the base picture, seams, and detail that an enlarged base lacks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clear_core.layout import TOKEN_PIXELS

from .guidance_methods import enlarge
from .measure import layout

CELLS, FINE_CELLS = 16, 64
"""Cells along a side of a picture of any size. One of 16 shows which thing is there, one of 64 what form and texture it
has; at 512 px they have 32 and 8 px."""


def layout_agreement(picture: Tensor, base: Tensor, cells: int = CELLS) -> float:
    """Correlation of a (3, H, W) picture's cell means with those of its (3, h, w) base; 1 is the same layout."""
    side = picture.shape[-1]
    return layout(picture, enlarge(base[None], side)[0], side // cells)


def seams(picture: Tensor) -> float:
    """Mean step of brightness across token borders over that across the codec's other borders; 1 is no token grid.

    The codec's blocks have 8 px and tokens 16, so that every second border of its blocks is one of tokens. Rows and
    columns of a (3, H, W) picture count alike.
    """
    tokens, blocks = 0.0, 0.0
    for lines in (picture.movedim(2, 0), picture.movedim(1, 0)):
        steps = (lines[1:] - lines[:-1]).abs().mean((1, 2))  # Of the border before line 1, 2, ...
        tokens += steps[TOKEN_PIXELS - 1 :: TOKEN_PIXELS].mean().item()
        blocks += steps[TOKEN_PIXELS // 2 - 1 :: TOKEN_PIXELS].mean().item()
    return tokens / blocks


def detail(picture: Tensor) -> float:
    """Mean square of what a picture (3, H, W) loses when it is made as small as one px per token, and large again."""
    height, width = picture.shape[1:]
    small = F.interpolate(
        picture[None], size=(height // TOKEN_PIXELS, width // TOKEN_PIXELS), mode="bicubic", antialias=True
    )
    return (picture - enlarge(small, width)[0]).square().mean().item()
