"""The part of a conditioning that belongs to a tile: areas, masks, latent-shaped inputs and ControlNet hints.

Source: ``comfy.samplers.get_area_and_mult``, which reads a conditioning, and ``comfy.controlnet.ControlBase``, in
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import uuid
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.conds import CONDNoiseShape
from comfy.ldm.flux.controlnet import ControlNetFlux
from torch import Tensor

from ....clear_core.layout import token_grid
from ....clear_core.sdedit import Tile
from ..model.controlnet import copy_of
from ..model.placed_control import PlacedControlModel
from ..model.tile_frame import FramePart

Cond = dict[str, Any]
"""One conditioning as the samplers see it, after ``comfy.samplers.process_conds``."""


def crop_cond(cond: Cond, tile: Tile, frame: Tensor, controls: dict[Any, Any]) -> Cond | None:
    """The part of a conditioning that lies in a tile; None if there is none.

    Args:
        cond: Of the whole frame.
        frame: (B, C, H, W) latent of the whole frame.
        controls: Cropped ControlNets by original and tile, so that a hint is cropped and encoded once.
    """
    rows, columns = tile.latents
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
    cropped["model_conds"] = {
        name: crop_model_cond(name, value, tile, frame) for name, value in cond["model_conds"].items()
    }
    if cond.get("control") is not None:
        key = (id(cond["control"]), tile)
        if key not in controls:
            part = FramePart(token_grid(*frame.shape[-2:]), tile)
            controls[key] = crop_control(cond["control"], rows, columns, frame, part)
        cropped["control"] = controls[key]
    return cropped


def area_weight(cond: Cond, frame: Tensor) -> Tensor:
    """(1, H, W) weight of a conditioning area at each latent of the frame, with the host's soft borders."""
    plain = {"area": cond["area"], "model_conds": {}, "uuid": None}
    inside = comfy.samplers.get_area_and_mult(plain, frame[:1, :1], None)
    weight = frame.new_zeros(1, *frame.shape[-2:])
    height, width, y, x = inside.area[0], inside.area[1], inside.area[2], inside.area[3]
    weight[:, y : y + height, x : x + width] = inside.mult[:, 0]
    return weight


def crop_area(area: tuple[int, ...], rows: slice, columns: slice) -> tuple[int, int, int, int] | None:
    """The part of an area inside the tile, as the host's (height, width, y, x) in latents, or None."""
    height, width, y, x = area
    top, left = max(y, rows.start), max(x, columns.start)
    bottom, right = min(y + height, rows.stop), min(x + width, columns.stop)
    if top >= bottom or left >= right:
        return None
    return bottom - top, right - left, top - rows.start, left - columns.start


def crop_model_cond(name: str, value: Any, tile: Tile, frame: Tensor) -> Any:
    """The tile's part of one input of the model; the same object if it is not laid out over the frame."""
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, Tensor):
        return value
    rows, columns = tile.latents
    if isinstance(value, CONDNoiseShape) and tensor.shape[-2:] == frame.shape[-2:]:
        return type(value)(tensor[..., rows, columns])
    height, width = token_grid(*frame.shape[-2:])
    if name == "attention_mask" and tensor.ndim >= 2 and min(tensor.shape[-2:]) >= height * width:
        return type(value)(crop_token_mask(tensor, tile, width, height * width))
    return value


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


def crop_control(control: Any, rows: slice, columns: slice, frame: Tensor, part: FramePart | None = None) -> Any:
    """A ControlNet (and those before it in the chain) with the hint of a tile; the original stays as it is.

    Args:
        control: A ``comfy.controlnet.ControlBase``.
        rows: The tile's, in latents.
        columns: The tile's, in latents.
        frame: (B, C, H, W) latent of the whole frame.
        part: The tile; a FLUX ControlNet gets its position in the frame. None leaves positions as they are.
    """
    cropped = copy_of(control)
    cropped.cond_hint = None
    model = getattr(control, "control_model", None)
    if part is not None and isinstance(model, ControlNetFlux):
        cropped.control_model = PlacedControlModel(model, part)
    clones = getattr(control, "multigpu_clones", None)
    if clones:
        cropped.multigpu_clones = {
            device: crop_control(clone, rows, columns, frame, part) for device, clone in clones.items()
        }
    if getattr(control, "previous_controlnet", None) is not None:
        cropped.previous_controlnet = crop_control(control.previous_controlnet, rows, columns, frame, part)
    hint = getattr(control, "cond_hint_original", None)
    if isinstance(hint, Tensor):
        ratio = control.compression_ratio * (control.vae.spacial_compression_encode() if control.vae else 1)
        cropped.cond_hint_original = crop_pixels(hint, ratio, rows, columns, frame, control.upscale_algorithm)
    extra = getattr(control, "extra_concat_orig", None)
    if extra:
        cropped.extra_concat_orig = [
            crop_pixels(item, 1, rows, columns, frame, control.upscale_algorithm) for item in extra
        ]
    return cropped


def crop_pixels(picture: Tensor, ratio: int, rows: slice, columns: slice, frame: Tensor, method: str) -> Tensor:
    """(B, C, h, w) pixels, resized as the host does to ``ratio`` px per latent of the frame, then cropped."""
    whole = comfy.utils.common_upscale(picture, frame.shape[-1] * ratio, frame.shape[-2] * ratio, method, "center")
    return whole[..., rows.start * ratio : rows.stop * ratio, columns.start * ratio : columns.stop * ratio]
