"""Tiles dealt out to several devices, one to each: nothing travels while they run.

Source: ``comfy.samplers._calc_cond_batch_multigpu``, which deals out conditions; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..crop.crop_conditioning import Cond
from ..model.devices import Device, Devices, on_device, options_for
from .others import is_one_at_a_time, unlike
from .strips import running_conds

Conds = list[list[Cond] | None]


@dataclass(frozen=True)
class Call:
    """One tile's part of a step: the arguments of ``comfy.samplers._calc_cond_batch``."""

    conds: Conds
    x: Tensor
    options: dict[str, Any]


def dealing_devices(conds: Conds, x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]) -> Devices | None:
    """The devices that tiles can be dealt out to, or None.

    None too if there are as many conditions as devices, since the host deals these out, if another node may keep
    something from one call to the next, and if the devices' models are not the same.
    """
    devices = Devices.of(model_options)
    if devices is None or len(running_conds(conds, x_in, timestep)) >= len(devices.each):
        return None
    if any(cond.get("hooks") is not None for each in conds for cond in each or ()):
        return None
    return None if is_one_at_a_time(model_options) or unlike(devices) is not None else devices


def dealt(executor: Any, devices: Devices, calls: Sequence[Call], timestep: Tensor) -> list[list[Tensor]]:
    """What each call gives, on the device of its x; there are no more calls than devices.

    Args:
        executor: Of the CALC_COND_BATCH wrapper that cuts the frame into tiles.
    """

    def work(device: Device) -> list[Tensor]:
        call, there = calls[device.rank], device.device
        conds = [None if each is None else [moved(cond, device) for cond in each] for each in call.conds]
        options = options_for(device, call.options)
        parts = executor(device.model, conds, call.x.to(there), timestep.to(there), options)
        return [part.to(call.x.device) for part in parts]

    return devices.run(work, len(calls), counted=True)


def moved(cond: Cond, device: Device) -> Cond:
    """A condition on a device, with the ControlNet that is there."""
    there = {**cond, "model_conds": {name: on_device(one, device.device) for name, one in cond["model_conds"].items()}}
    if "mask" in cond:
        there["mask"] = on_device(cond["mask"], device.device)
    if cond.get("control") is not None:
        there["control"] = cond["control"].get_instance_for_device(device.device)
    return there
