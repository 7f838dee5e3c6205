"""A FLUX ControlNet in strips: its hint and its latent are read whole, its blocks run on several devices.

Source: ``comfy.ldm.flux.controlnet.ControlNetFlux.forward``, which makes tokens of latent and hint and hands them to
``forward_orig``; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....clear_core.layout import SequenceLayout
from .devices import Device, Devices, on_device
from .image_positions import place_image
from .strip_part import StripPart, in_strips
from .tile_frame import FramePart

Residuals = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class ControlStrips:
    """Stands for the ``forward_orig`` of a ControlNet's model in one call.

    Attributes:
        devices: They share the call.
        grid: (h, w) in tokens.
        part: The tile that the call computes, or None for the whole frame.
        multiple: Strips are cut at multiples of it, in rows.
        forward: ``forward_orig`` of one strip on a device: called with both, then with its arguments.
    """

    devices: Devices
    grid: tuple[int, int]
    part: FramePart | None
    multiple: int
    forward: Callable[..., Residuals]

    def __call__(
        self,
        img: Tensor,
        img_ids: Tensor,
        controlnet_cond: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        *others: Tensor | None,
        **named: Any,
    ) -> Residuals:
        """The residuals of the whole picture. img, img_ids, controlnet_cond: (B, h * w, ...); all else has no place."""
        (_, width), text = self.grid, txt_ids.shape[1]
        # A strip's rows do not begin at 0, by which positions that are not exact would be found.
        ids = place_image(torch.cat([txt_ids, img_ids], dim=1), SequenceLayout(text, self.grid), self.part)
        placed = img_ids if ids is None else ids[:, text:]

        def work(device: Device, strip: StripPart) -> Residuals:
            tokens, there = slice(strip.own.start * width, strip.own.stop * width), device.device
            own = [on_device(one[:, tokens], there) for one in (img, placed, controlnet_cond)]
            rest = [on_device(one, there) for one in (txt, txt_ids, *others)]
            more = {name: on_device(one, there) for name, one in named.items()}
            return self.forward(device, strip, *own, *rest, **more)

        parts = in_strips(self.devices, self.grid, self.multiple, work)
        # A ControlNet with fewer blocks than the model gives the same tensor several times.
        whole: dict[tuple[int, ...], Tensor] = {}

        def joined(*residuals: Tensor) -> Tensor:
            key = tuple(map(id, residuals))
            if key not in whole:
                whole[key] = torch.cat([on_device(one, img.device) for one in residuals], dim=1)
            return whole[key]

        return {place: tuple(map(joined, *(part[place] for part in parts))) for place in parts[0]}
