"""A ControlNet of a tile: its hint, and whatever else it holds that lies over the picture.

Masks, masks of keyframes and of weights (Advanced-ControlNet) are found by shape in the control's attributes.

Source: ``comfy.controlnet.ControlBase``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy.ldm.flux.controlnet import ControlNetFlux
from torch import Tensor

from ..model.controlnet import copy_of
from ..model.placed_control import PlacedControlModel
from .crop_picture import PictureCrop

OF_THE_HOST = (
    "cond_hint",
    "cond_hint_original",
    "extra_concat",
    "extra_concat_orig",
    "control_model",
    "multigpu_clones",
    "previous_controlnet",
)
"""Attributes with a rule of their own below, and what the host makes of them."""


def crop_control(control: Any, crop: PictureCrop, move: bool = True) -> Any:
    """A ControlNet (and those before it in the chain) for a tile; the original stays as it is.

    Args:
        control: A ``comfy.controlnet.ControlBase``.
        crop: The tile.
        move: Whether a FLUX ControlNet gets the tile's position in the frame.
    """
    cropped = copy_of(control)
    cropped.cond_hint = None
    model = getattr(control, "control_model", None)
    if move and isinstance(model, ControlNetFlux):
        cropped.control_model = PlacedControlModel(model, crop.part)
    clones = getattr(control, "multigpu_clones", None)
    if clones:
        cropped.multigpu_clones = {device: crop_control(clone, crop, move) for device, clone in clones.items()}
    if getattr(control, "previous_controlnet", None) is not None:
        cropped.previous_controlnet = crop_control(control.previous_controlnet, crop, move)
    hint = getattr(control, "cond_hint_original", None)
    if isinstance(hint, Tensor):
        ratio = control.compression_ratio * (control.vae.spacial_compression_encode() if control.vae else 1)
        cropped.cond_hint_original = crop_hint(hint, ratio, crop, control.upscale_algorithm)
    elif hint is not None:
        cropped.cond_hint_original = crop.of(hint, f"{type(control).__name__}.cond_hint_original")
    extra = getattr(control, "extra_concat_orig", None)
    if extra:
        cropped.extra_concat_orig = [crop_hint(item, 1, crop, control.upscale_algorithm) for item in extra]
    for name, value in vars(control).items():
        if name not in OF_THE_HOST:
            part = crop.of(value, f"{type(control).__name__}.{name}")
            if part is not value:
                setattr(cropped, name, part)
    return cropped


def crop_hint(picture: Tensor, ratio: int, crop: PictureCrop, method: str) -> Tensor:
    """(B, C, h, w) pixels, resized as the host does to ``ratio`` px per latent of the frame, then cropped."""
    height, width = crop.frame
    whole = comfy.utils.common_upscale(picture, width * ratio, height * ratio, method, "center")
    # Not a view, which would keep the whole hint in memory for every tile.
    return crop.pixels(whole, ratio).clone()
