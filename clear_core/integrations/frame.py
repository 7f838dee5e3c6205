"""The frame of one call, read from the position ids or shapes that diffusers hands to the model, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..wording import quoted


@dataclass(frozen=True)
class Frame:
    """What one call is about.

    Attributes:
        grid: (h, w) of the image in tokens.
        reference: Reference tokens after the image (FLUX.1 Kontext).
        exact_ids: (h * w + reference, axes) float32 ids without the rounding that half precision adds past 256.
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


def read_frame(img_ids: Tensor, axes: int = 3) -> Frame:
    """The frame that ``img_ids`` describe.

    Args:
        img_ids: (tokens, axes) or (B, tokens, axes), rows (index, y, x), and zeros for further axes. The image is the
            first run of tokens with one index; whatever follows is reference tokens. The diffusers pipelines of FLUX.1
            cast ids to the dtype of the model, which merges neighbouring tokens past 256 in bfloat16 (4096 pixels).
        axes: 3 (FLUX.1), or 4 (FLUX.2, whose last axis counts text).

    Raises:
        ValueError: The image's ids are not one row-major grid.
    """
    ids = (img_ids[0] if img_ids.ndim == 3 else img_ids).detach()
    if ids.ndim != 2 or ids.shape[1] != axes or ids.shape[0] == 0:
        raise ValueError(
            f"img_ids has shape {tuple(img_ids.shape)}; expected (tokens, {axes}) with at least one token."
        )
    given = ids.to("cpu", torch.float32)
    other = (given[:, 0] != given[0, 0]).nonzero()
    image_tokens = int(other[0]) if len(other) else len(given)
    image = given[:image_tokens]
    second_row = (image[:, 1] != image[0, 1]).nonzero()
    width = int(second_row[0]) if len(second_row) else image_tokens
    exact = grid_ids((image_tokens // width, width), float(image[0, 0]), (float(image[0, 1]), float(image[0, 2])))
    exact = torch.cat([exact, image[:1, 3:].expand(len(exact), -1)], dim=1)
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


def read_shapes(img_shapes: Any, text: int) -> tuple[Frame, Tensor]:
    """The frame that Qwen-Image's ``img_shapes`` describe, and the positions of its text tokens.

    Source: ``QwenEmbedRope`` of diffusers 0.42. Pictures are centred at position 0 and numbered on the first axis; text
    goes on from the end of the largest on every axis.

    Args:
        img_shapes: For each item of the batch the (frames, h, w) of its image and of its reference images, in tokens.
        text: Text tokens.

    Returns:
        The frame, and (text, 3) float32 positions.

    Raises:
        ValueError: Items differ, or a picture has several frames.
    """
    items = list(img_shapes)
    if any(item != items[0] for item in items):
        raise ValueError(
            f"img_shapes names several sizes in one batch ({quoted(items)}), but CLEAR places one grid of windows; "
            "call the transformer once for each size."
        )
    pictures = [tuple(shape) for shape in (items[0] if isinstance(items[0], list) else items[:1])]
    if any(frames != 1 for frames, _, _ in pictures):
        raise ValueError(
            f"img_shapes is {quoted(pictures)}, but CLEAR's windows lie in one picture of 1 frame; take CLEAR off for "
            "this call."
        )
    grids = [(height, width) for _, height, width in pictures]
    ids = [
        grid_ids((height, width), index, (height // 2 - height, width // 2 - width))
        for index, (height, width) in enumerate(grids)
    ]
    first = max(side // 2 for grid in grids for side in grid)
    text_ids = torch.arange(first, first + text, dtype=torch.float32)[:, None].expand(-1, 3)
    exact = torch.cat(ids)
    return Frame(grids[0], len(exact) - grids[0][0] * grids[0][1], exact), text_ids
