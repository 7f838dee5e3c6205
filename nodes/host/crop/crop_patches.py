"""Controls that are applied inside the model's layers: their picture is cropped to a tile, or they are named.

Such a control is an object in ``transformer_options["patches"]`` that holds a picture for the whole frame and scales it
to the latent of every call, so that a tile would get the whole of it.

Source: ``comfy_extras.nodes_model_patch`` (``DiffSynthCnetPatch`` of Qwen-Image, ``ZImageControlPatch``), which encode
the picture again where ``encoded_image`` is None; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from types import MethodType
from typing import Any

import comfy.utils
from torch import Tensor

from .crop_picture import PictureCrop
from .foreign_objects import is_foreign, owner_of

ENCODED = "encoded_image"
DERIVED = (ENCODED, "encoded_image_size", "temp_data")
"""What such an object makes of its picture, and makes again where there is nothing."""

SMALLEST_PICTURE = 8
"""Least side of what is taken for a picture."""


def crop_patches(options: dict[str, Any], crop: PictureCrop, parts: dict[Any, Any]) -> dict[str, Any]:
    """The ``transformer_options`` of a tile, in which controls have its part of their picture.

    Args:
        options: Of the whole frame.
        crop: The tile.
        parts: Cropped objects by original and tile, so that a picture is cropped and encoded once.
    """
    for name, owner in owners_in(options.get("patches_replace", {})):
        if pictures_of(owner):
            say_whole(owner, name, crop)
    patches = options.get("patches")
    if not patches:
        return options
    return {
        **options,
        "patches": {name: [part_of(each, name, crop, parts) for each in patches[name]] for name in patches},
    }


def owners_in(value: Any, name: str = "patches_replace") -> Generator[tuple[str, Any]]:
    """The objects of other nodes in nested containers, each with where it was found."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from owners_in(item, str(key))
    elif callable(value) and is_foreign(owner_of(value)):
        yield name, owner_of(value)


def part_of(patch: Any, name: str, crop: PictureCrop, parts: dict[Any, Any]) -> Any:
    """One patch for a tile: itself if it holds no picture, or none that can be cropped."""
    owner = owner_of(patch)
    if not is_foreign(owner) or not pictures_of(owner):
        return patch
    if not hasattr(owner, ENCODED):
        say_whole(owner, name, crop)
        return patch
    key = (id(owner), crop.tile)
    if key not in parts:
        parts[key] = cropped_owner(owner, crop)
    part = parts[key]
    return MethodType(patch.__func__, part) if isinstance(patch, MethodType) else part


def cropped_owner(owner: Any, crop: PictureCrop) -> Any:
    """A copy of a control with the tile's part of its pictures and of its mask; it encodes them at its first call."""
    made = copy.copy(owner)
    for name, picture in pictures_of(owner).items():
        setattr(made, name, crop_channels_last(picture, crop))
    mask = getattr(owner, "mask", None)
    if isinstance(mask, Tensor):
        made.mask = crop.cut(mask)
    for name in DERIVED:
        if hasattr(owner, name):
            setattr(made, name, None)
    return made


def pictures_of(owner: Any) -> dict[str, Tensor]:
    """Attributes that hold a picture as the host's IMAGE is: (B, H, W, C)."""
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, Tensor)
        and value.ndim == 4
        and value.shape[-1] in (1, 3, 4)
        and min(value.shape[1:3]) >= SMALLEST_PICTURE
    }


def crop_channels_last(picture: Tensor, crop: PictureCrop) -> Tensor:
    """(B, H, W, C) pixels, resized as the host does to the frame's pixels, then cropped."""
    height, width = crop.pixel_size
    whole = comfy.utils.common_upscale(picture.movedim(-1, 1), width, height, "area", "center")
    return crop.pixels(whole, crop.units.latent_pixels).movedim(1, -1).clone()


def say_whole(owner: Any, name: str, crop: PictureCrop) -> None:
    """Name a control that every tile gets whole."""
    kind = type(owner)
    crop.notices.log_once(
        f"patch {kind.__module__}.{kind.__qualname__}",
        f"{kind.__name__} ({name}) is applied inside the model's layers and holds a picture that cannot be cropped, so "
        "every tile gets the whole of it; sample without tiles or without that node.",
    )
