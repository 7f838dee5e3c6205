"""What lies over the picture, found by its shape in objects of any nesting, and cropped to a tile."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from comfy.controlnet import ControlBase
from torch import Tensor

from ....clear_core.families import FLUX1
from ....clear_core.frame_units import FrameUnits
from ....clear_core.sdedit import Tile
from ..model.notices import Notices
from ..model.tile_frame import FramePart
from .foreign_objects import is_foreign

TOLERANCE = 1 / 16
"""Relative difference of two aspect ratios that is taken for the same picture: a frame is padded to whole units."""

SMALLEST_NAMED = 8
"""Least side of a tensor that is worth a line in the log if it is not cropped."""

DEEPEST = 6


@dataclass
class PictureCrop:
    """A tile's part of tensors that lie over the whole picture.

    Attributes:
        tile: In units.
        frame: (H, W) of the whole frame in latents.
        units: How the model's frame is made.
        notices: For what looks like a picture and cannot be cropped.
        made: Parts by the id of what they are of, so that what is shared stays shared.
    """

    tile: Tile
    frame: tuple[int, int]
    units: FrameUnits = FLUX1.units
    notices: Notices = field(default_factory=Notices)
    made: dict[int, Any] = field(default_factory=dict)

    @property
    def part(self) -> FramePart:
        """The tile, and the frame in units."""
        height, width = (-(-side // self.units.cells) for side in self.frame)
        return FramePart((height, width), self.tile)

    @property
    def tokens(self) -> tuple[int, int]:
        """(rows, columns) of the frame in tokens."""
        height, width = (-(-side // self.units.token_cells) for side in self.frame)
        return height, width

    @property
    def pixel_size(self) -> tuple[int, int]:
        """(rows, columns) of the frame in pixels."""
        return self.frame[0] * self.units.latent_pixels, self.frame[1] * self.units.latent_pixels

    @property
    def latents(self) -> tuple[slice, slice]:
        """Rows and columns of the tile."""
        return self.tile.latents

    def of(self, value: Any, where: str, depth: int = 0) -> Any:
        """The tile's part of a value: itself if nothing in it lies over the picture, else a copy.

        Args:
            value: A tensor, a container or an object of another node; anything else is left as it is.
            where: Name of the value, for the log.
            depth: Of the nesting; deeper than :data:`DEEPEST` nothing is looked at.
        """
        if isinstance(value, Tensor):
            return self.tensor(value, where)
        is_container = type(value) in (dict, list, tuple)
        if depth > DEEPEST or isinstance(value, ControlBase) or not (is_container or is_foreign(value)):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = value  # For what refers back to it.
            items = dict(enumerate(value)) if type(value) in (list, tuple) else value if is_container else vars(value)
            parts = {name: self.of(item, f"{where}.{name}", depth + 1) for name, item in items.items()}
            changed = {name: part for name, part in parts.items() if part is not items[name]}
            if changed:
                self.made[id(value)] = with_items(value, parts, changed)
        return self.made[id(value)]

    def tensor(self, tensor: Tensor, where: str) -> Tensor:
        """The tile's part of a tensor; itself if it does not lie over the picture."""
        if not 2 <= tensor.ndim <= 5 or min(tensor.shape[-2:]) < 2 or tensor.is_complex():
            return tensor
        if lies_over(tensor, self.frame):
            return self.cut(tensor)
        if tensor.ndim > 2 and min(tensor.shape[-2:]) >= SMALLEST_NAMED:
            self.notices.log_once(
                f"crop {where}",
                f"{where} has the shape {tuple(tensor.shape)}, which is neither the picture's nor a mask's, so every "
                "tile gets the whole of it; if it belongs to places of the picture, give it the picture's proportions.",
            )
        return tensor

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor (..., h, w) has a place for each latent, pixel or token of the frame, and no other."""
        return tuple(tensor.shape[-2:]) in (self.frame, self.tokens, self.pixel_size)

    def cut(self, tensor: Tensor) -> Tensor:
        """The tile's rows and columns of a tensor (..., h, w), stretched to the frame's pixels if it does not fit."""
        if not self.fits(tensor):
            tensor = resized(tensor, self.pixel_size)
        # Not a view, which would keep the whole picture in memory for every tile.
        if tuple(tensor.shape[-2:]) not in (self.frame, self.pixel_size):
            patch = self.units.token_cells
            rows, columns = (slice(part.start // patch, part.stop // patch) for part in self.latents)
            return tensor[..., rows, columns].clone()
        return self.pixels(tensor, tensor.shape[-2] // self.frame[0]).clone()

    def pixels(self, picture: Tensor, ratio: int) -> Tensor:
        """The tile's view of a picture (..., H * ratio, W * ratio)."""
        rows, columns = self.latents
        return picture[..., rows.start * ratio : rows.stop * ratio, columns.start * ratio : columns.stop * ratio]


def lies_over(tensor: Tensor, frame: tuple[int, int]) -> bool:
    """Whether a tensor (..., h, w) belongs to places of the picture: by its proportions, or because it is a mask.

    The host and Advanced-ControlNet stretch masks of any proportions over the picture.
    """
    height, width = tensor.shape[-2:]
    if abs(height * frame[1] / (width * frame[0]) - 1) <= TOLERANCE and (tensor.ndim > 2 or height >= frame[0] // 2):
        return True
    is_plane = tensor.ndim == 3 or (tensor.ndim == 4 and tensor.shape[1] == 1)
    if not is_plane or tensor.is_meta:
        return False
    return tensor.dtype in (torch.bool, torch.uint8) or (
        tensor.is_floating_point() and bool(tensor.amin() >= 0) and bool(tensor.amax() <= 1)
    )


def resized(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) stretched as the host stretches masks; numbers that are not measures are repeated."""
    plane = tensor.reshape(-1, 1, *tensor.shape[-2:])
    if tensor.is_floating_point():
        plane = F.interpolate(plane, size=size, mode="bilinear")
    else:
        plane = F.interpolate(plane.float(), size=size, mode="nearest-exact").to(tensor.dtype)
    return plane.reshape(*tensor.shape[:-2], *size)


def with_items(value: Any, parts: dict[Any, Any], changed: dict[Any, Any]) -> Any:
    """A copy of a container or an object in which some items or attributes are others."""
    if type(value) in (list, tuple):
        return type(value)(parts.values())
    made = copy.copy(value)
    (made if isinstance(made, dict) else vars(made)).update(changed)
    return made
