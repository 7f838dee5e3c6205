"""Measures of pictures: against their base, against other ones of the same scenes, seams and detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core.layout import TOKEN_PIXELS

from ..tiny_flux.codec import decode
from ..tiny_flux.evaluate import psnr
from ..world import Scene
from .guidance_methods import enlarge
from .measure import layout, mean, ssim
from .objects import count_things, found_share

CELLS, FINE_CELLS = 16, 64
"""Cells along a side of a picture of any size. One of 16 shows which thing is there, one of 64 what form and texture it
has; at 512 px they have 32 and 8 px."""


def layout_agreement(picture: Tensor, base: Tensor, cells: int = CELLS) -> float:
    """Correlation of a (3, H, W) picture's cell means with those of its (3, h, w) base; 1 is the same layout."""
    side = picture.shape[-1]
    return layout(picture, enlarge(base[None], side)[0], side // cells)


def levels_apart(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two pictures in 0 to 1, in levels of 255."""
    return 255 * (one - other).square().mean().sqrt().item()


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


def judged(latents: Tensor, wanted: Tensor, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Measures of some pictures, by scene where they spread.

    Args:
        latents: (B, 16, h, w).
        wanted: Those of the pictures they are compared with.
        scenes: One for each picture.

    Returns:
        ``psnr`` (dB) by picture, ``ssim``, ``layout``, ``latent_mse`` by picture, and the ``found`` and ``surplus``
        things of the caption; for the wanted latents themselves only the last two.
    """
    pictures, wished = (list(decode(each).clamp(0, 1)) for each in (latents, wanted))
    counts = [count_things(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    row: dict[str, Any] = {"found": found_share(counts), "surplus": mean(count.surplus for count in counts)}
    if torch.equal(latents, wanted):
        return row
    pairs = list(zip(pictures, wished, strict=True))
    return row | {
        "psnr": [psnr(*pair) for pair in pairs],
        "ssim": mean(ssim(*pair) for pair in pairs),
        "layout": mean(layout(*pair) for pair in pairs),
        "latent_mse": (latents - wanted).square().mean((1, 2, 3)).tolist(),
    }
