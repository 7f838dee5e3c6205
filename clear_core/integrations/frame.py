"""The frame of one FLUX call, read from the position ids that diffusers hands to the model, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """What one call is about.

    Attributes:
        grid: (h, w) of the image in tokens.
        reference: Reference tokens after the image (FLUX.1 Kontext).
        exact_ids: (h * w + reference, 3) float32 ids without the rounding that half precision adds past 256.
    """

    grid: tuple[int, int]
    reference: int
    exact_ids: Tensor


def grid_ids(grid: tuple[int, int], index: float = 0.0, origin: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Position ids of one picture, as FLUX numbers them.

    Args:
        grid: (h, w) in tokens.
        index: First id: 0 for the image, 1 and up for reference pictures.
        origin: (y, x) of the first token.

    Returns:
        (h * w, 3) float32 rows (index, y, x), row-major.
    """
    height, width = grid
    ys = torch.arange(height, dtype=torch.float32) + origin[0]
    xs = torch.arange(width, dtype=torch.float32) + origin[1]
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(y, index), y, x], dim=-1).reshape(-1, 3)


def read_frame(img_ids: Tensor) -> Frame:
    """The frame that ``img_ids`` describe.

    Args:
        img_ids: (tokens, 3) or the older (B, tokens, 3), rows (index, y, x). The image is the first run of
            tokens with one index; whatever follows is reference tokens. The diffusers pipelines cast ids to the
            dtype of the model, which merges neighbouring tokens past 256 in bfloat16 (4096 pixels).

    Raises:
        ValueError: The image's ids are not one row-major grid.
    """
    ids = (img_ids[0] if img_ids.ndim == 3 else img_ids).detach()
    if ids.ndim != 2 or ids.shape[1] != 3 or ids.shape[0] == 0:
        raise ValueError(f"img_ids has shape {tuple(img_ids.shape)}; expected (tokens, 3) with at least one token.")
    given = ids.to("cpu", torch.float32)
    other = (given[:, 0] != given[0, 0]).nonzero()
    image_tokens = int(other[0]) if len(other) else len(given)
    image = given[:image_tokens]
    second_row = (image[:, 1] != image[0, 1]).nonzero()
    width = int(second_row[0]) if len(second_row) else image_tokens
    exact = grid_ids((image_tokens // width, width), float(image[0, 0]), (float(image[0, 1]), float(image[0, 2])))
    if len(exact) != image_tokens or not torch.equal(exact.to(ids.dtype).float(), image):
        raise ValueError(
            f"the first {image_tokens} of img_ids are not one picture in row-major order (rows of {width} tokens do "
            "not fit them), so CLEAR cannot place its windows; take CLEAR off for this call, or give the ids of a "
            "whole grid."
        )
    return Frame(
        (image_tokens // width, width),
        len(given) - image_tokens,
        torch.cat([exact, given[image_tokens:]]).to(ids.device),
    )
