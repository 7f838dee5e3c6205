"""Tensors of pictures and masks: their forms, and padding."""

from __future__ import annotations

import torch
from torch import Tensor

MASK_OVERSHOOT = 0.5
"""A bicubic resize leaves 0 to 1 by less than this; whatever lies further outside is on another scale."""


def as_picture(image: Tensor) -> Tensor:
    """A picture (B, H, W, 3) in floating point, from one of any number of channels.

    Args:
        image: (B, H, W, C) in 0 to 1. One channel is grey, two are grey and alpha; of more, the first three count.

    Raises:
        ValueError: It is empty, has another shape, or holds integers.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(
            f"image has the shape {tuple(image.shape)}; expected (pictures, height, width, channels) with at least one "
            "of each: connect a node that gives a picture."
        )
    if not image.dtype.is_floating_point and image.dtype != torch.bool:
        raise ValueError(
            f"image holds {str(image.dtype).removeprefix('torch.')} numbers; expected floating point from 0 to 1: "
            "divide it by 255 in the node that made it."
        )
    return as_float(image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(1, 1, 1, 3))


def as_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """A mask (B, h, w) in float32.

    Args:
        mask: (B, h, w), (h, w), (B, 1, h, w) or (B, h, w, 1), of any dtype, in 0 to 1.
        name: What to call it in a message.

    Raises:
        ValueError: It is empty, has another shape, or holds other numbers.
    """
    shape = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    elif mask.ndim == 4 and 1 in (shape[1], shape[3]):
        mask = mask.squeeze(1 if shape[1] == 1 else 3)
    if mask.ndim != 3 or 0 in shape:
        raise ValueError(
            f"{name} has the shape {shape}; expected (masks, height, width) with at least one of each: connect a node "
            "that gives a mask."
        )
    mask = mask.float()
    check_finite(mask, name)
    low, high = (float(value) for value in mask.aminmax())
    if low < -MASK_OVERSHOOT or high > 1 + MASK_OVERSHOOT:
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}; expected 0 to 1: rescale it in the node that made it."
        )
    return mask


def as_float(values: Tensor) -> Tensor:
    """The same values in a floating-point type that NumPy knows."""
    return values if values.dtype in (torch.float16, torch.float32, torch.float64) else values.float()


def check_finite(values: Tensor, name: str) -> None:
    """Raises a ValueError if ``values`` has NaN or infinite ones; ``name`` is what to call it."""
    # Both ends are NaN if one value is; of a picture this makes no copy.
    if not all(end.isfinite() for end in as_float(values).aminmax()):
        raise ValueError(
            f"{name} has NaN or infinite values; expected finite numbers: look at the node that made it, which may "
            "need a higher precision."
        )


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
