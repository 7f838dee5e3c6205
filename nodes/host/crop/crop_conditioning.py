"""The part of a conditioning that belongs to a tile: areas, masks, boxes, inputs over the picture and ControlNets.

Source: ``comfy.samplers.get_area_and_mult``, which reads a conditioning; ``comfy.conds``; ``comfy.gligen``; ComfyUI
0.9.0 and later.
"""

from __future__ import annotations

import uuid
from typing import Any

import comfy.samplers
import torch
from comfy.conds import CONDCrossAttn
from torch import Tensor

from ....clear_core.sdedit import Tile
from .crop_control import crop_control
from .crop_picture import PictureCrop

NOT_OVER_THE_PICTURE = ("c_crossattn", "y", "reference_latent", "ref_latent")
"""Inputs of a model that belong to no place, whatever their shape: text, and references that are no lists."""

Cond = dict[str, Any]
"""One conditioning as the samplers see it, after ``comfy.samplers.process_conds``."""


def crop_cond(cond: Cond, crop: PictureCrop, frame: Tensor, controls: dict[Any, Any]) -> Cond | None:
    """The part of a conditioning that lies in a tile; None if there is none.

    Args:
        cond: Of the whole frame.
        crop: The tile.
        frame: (B, C, H, W) or (B, C, 1, H, W) latent of the whole frame.
        controls: Cropped ControlNets by original and tile, so that a hint is cropped and encoded once.
    """
    tile, (rows, columns) = crop.tile, crop.latents
    # Nodes that tell the conditionings of one step apart (EasyCache) must not take a tile for another one.
    cropped: Cond = {**cond, "uuid": uuid.uuid5(cond["uuid"], f"{tile.y} {tile.x}")}
    if "area" in cond:
        if "mask" not in cond:
            cropped["mask"] = area_weight(cond, frame)
        area = crop_area(cond["area"], rows, columns)
        if area is None:
            return None
        cropped["area"] = area
    if "mask" in cropped:
        cropped["mask"] = cropped["mask"][..., rows, columns]
        if not cropped["mask"].any():
            return None
    if "gligen" in cond:
        cropped["gligen"] = crop_boxes(cond["gligen"], rows, columns)
    cropped["model_conds"] = {
        name: value if name in NOT_OVER_THE_PICTURE else crop_model_cond(value, crop)
        for name, value in cond["model_conds"].items()
    }
    if cond.get("control") is not None:
        key = (id(cond["control"]), tile)
        if key not in controls:
            controls[key] = crop_control(cond["control"], crop)
        cropped["control"] = controls[key]
    return cropped


def area_weight(cond: Cond, frame: Tensor) -> Tensor:
    """(1, H, W), or (1, 1, H, W) with an axis of time: weight of a conditioning area at each latent of the frame.

    It has the host's soft borders.
    """
    plain = {"area": plane_area(cond["area"]), "model_conds": {}, "uuid": None}
    plane = frame[:1, :1].flatten(1, -3)[:, :1]
    inside = comfy.samplers.get_area_and_mult(plain, plane, None)
    weight = plane.new_zeros(1, *plane.shape[-2:])
    height, width, y, x = inside.area[0], inside.area[1], inside.area[2], inside.area[3]
    weight[:, y : y + height, x : x + width] = inside.mult[:, 0]
    return weight if frame.ndim == 4 else weight[None]


def plane_area(area: tuple[int, ...]) -> tuple[int, ...]:
    """The host's (height, width, y, x) of an area that may have sides and places in time too."""
    half = len(area) // 2
    return (*area[half - 2 : half], *area[-2:])


def crop_area(area: tuple[int, ...], rows: slice, columns: slice) -> tuple[int, int, int, int] | None:
    """The part of an area inside the tile, as the host's (height, width, y, x) in latents, or None."""
    height, width, y, x = plane_area(area)
    top, left = max(y, rows.start), max(x, columns.start)
    bottom, right = min(y + height, rows.stop), min(x + width, columns.stop)
    if top >= bottom or left >= right:
        return None
    return bottom - top, right - left, top - rows.start, left - columns.start


def crop_boxes(gligen: tuple[Any, ...], rows: slice, columns: slice) -> tuple[Any, ...]:
    """GLIGEN's boxes ("position", model, [(embedding, height, width, y, x)]) inside the tile, in latents."""
    kind, model, boxes, *rest = gligen
    if kind != "position":
        return gligen
    parts = [(embedding, crop_area(tuple(area), rows, columns)) for embedding, *area in boxes]
    return kind, model, [(embedding, *area) for embedding, area in parts if area is not None], *rest


def crop_model_cond(value: Any, crop: PictureCrop) -> Any:
    """The tile's part of one input of the model; the same object if it is not laid out over the frame."""
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, Tensor) or isinstance(value, CONDCrossAttn) or tensor.ndim < 2:
        return value
    if tensor.ndim > 2 and crop.fits(tensor):
        return type(value)(crop.cut(tensor))
    height, width = crop.part.grid
    # In a UNet, whose units are of several tokens, no mask is over a whole sequence.
    if crop.units.unit_tokens == 1 and is_token_mask(tensor, height * width):
        return type(value)(crop_token_mask(tensor, crop.tile, width, height * width))
    return value


def is_token_mask(tensor: Tensor, image_tokens: int) -> bool:
    """Whether it has a row and a column for each token of a sequence with all image tokens."""
    return tensor.shape[-1] == tensor.shape[-2] >= image_tokens


def crop_token_mask(mask: Tensor, tile: Tile, width: int, image_tokens: int) -> Tensor:
    """An attention mask (..., T + N, T + N) for the tokens of a tile; ``width`` is the frame's in tokens."""
    for dim in (-2, -1):
        text = mask.shape[dim] - image_tokens
        image = mask.narrow(dim, text, image_tokens).unflatten(dim, (-1, width))
        # Counted from the end, unflatten leaves columns at ``dim`` and puts rows before them.
        first = dim - 1
        image = image.narrow(first, tile.y, tile.height).narrow(first + 1, tile.x, tile.width)
        mask = torch.cat([mask.narrow(dim, 0, text), image.flatten(first, first + 1)], dim=dim)
    return mask
