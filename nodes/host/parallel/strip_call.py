"""One call of the model on several devices: each computes a strip of rows, and what borders on it travels.

Source: ``comfy.patcher_extension.WrappersMP.APPLY_MODEL``; ``comfy.model_base.BaseModel._apply_model``;
``comfy.ldm.common_dit.pad_to_patch_size``, by which models fill a last token; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ....clear_core.families import Family
from ....clear_core.layout import token_grid
from ..model.apply import KEY as WINDOW
from ..model.attention_override import WindowPatch
from ..model.devices import DEVICES, Device, Devices, inner_options, on_device
from ..model.notices import Notices
from ..model.strip_part import KEY, StripError, StripPart, count_of, in_strips
from ..model.tile_frame import KEY as FRAME_PART
from .others import is_known, unlike

Inputs = dict[str, Any]


@dataclass(frozen=True, eq=False)
class StripCalls:
    """The APPLY_MODEL wrapper that cuts a call, if the step is one on several devices."""

    notices: Notices

    def __call__(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """(B, C, H, W): the prediction for a latent x of that shape."""
        options = dict(transformer_options or {})
        devices, window = options.pop(DEVICES, None), window_of(options)
        if devices is None or window is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **extra)
        if extra.get("attention_mask") is not None:
            self.say_whole("an attention mask belongs to the whole picture, so it")
            return executor(x, t, c_concat, c_crossattn, control, options, **extra)
        rest = executor.wrappers[executor.idx + 1 :]
        inside = [wrapper for wrapper in rest if is_known(wrapper)]
        outside = [wrapper for wrapper in rest if wrapper not in inside]

        def cut(
            x: Tensor,
            t: Tensor,
            c_concat: Tensor | None = None,
            c_crossattn: Tensor | None = None,
            control: Any = None,
            transformer_options: dict[str, Any] | None = None,
            **extra: Any,
        ) -> Tensor:
            options = transformer_options or {}
            # Only now: other nodes exchange parts of the first device's model for the length of a call.
            reason = unlike(devices)
            if reason is not None:
                self.say_whole(f"{reason}, so the picture")
                whole = WrapperExecutor.new_class_executor(executor.original, executor.class_obj, inside)
                return whole.execute(x, t, c_concat, c_crossattn, control, options, **extra)
            inputs = {**extra, "c_concat": c_concat, "c_crossattn": c_crossattn, "transformer_options": options}
            return StripRun(devices, window, inside, x, t, control, inputs, self.notices).predicted()

        around = WrapperExecutor.new_class_executor(cut, executor.class_obj, outside)
        # By position, as the host calls them.
        return around.execute(x, t, c_concat, c_crossattn, control, options, **extra)

    def say_whole(self, reason: str) -> None:
        """One line that tells why a call is not cut."""
        self.notices.log_once(reason, f"{reason} is not cut into strips for several devices.")


@dataclass(frozen=True)
class StripRun:
    """One call of the model, in strips.

    Attributes:
        devices: They share it.
        window: CLEAR's part of the model.
        wrappers: Around each strip's call.
        x: (B, C, H, W) latent.
        t: (B,) noise levels.
        control: Residuals of the ControlNets, by place in the model.
        inputs: All others; ``transformer_options`` is one.
        notices: For the line that says it.
    """

    devices: Devices
    window: WindowPatch
    wrappers: list[Any]
    x: Tensor
    t: Tensor
    control: dict[str, list[Tensor | None]] | None
    inputs: Inputs
    notices: Notices

    @property
    def family(self) -> Family:
        return self.window.shape.family

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in latents."""
        height, width = self.x.shape[-2:]
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return token_grid(*self.size, self.family.token_cells)

    def predicted(self) -> Tensor:
        """(B, C, H, W)."""
        multiple = self.window.settings.spec.down_factor
        count = count_of(self.devices, self.grid[0], multiple)
        if count > 1:
            self.say(count)
        # A model fills a last token by what it is given, and a strip lacks the picture's first row.
        padded = self.padded(self.x)
        inputs = {name: self.padded(value) if self.lies_over(value) else value for name, value in self.inputs.items()}

        def work(device: Device, part: StripPart) -> Tensor:
            return self.strip(device, part, padded, inputs).to(self.x.device)

        whole = torch.cat(in_strips(self.devices, self.grid, multiple, work), dim=2)
        return whole[..., : self.size[0], : self.size[1]]

    def say(self, count: int) -> None:
        """One line for each size."""
        height, width = (self.family.token_pixels // self.family.token_cells * side for side in self.size)
        line = f"{width} x {height} px in {count} strips on {self.devices.names(count)}"
        self.notices.log_once(line, line)

    def padded(self, tensor: Tensor) -> Tensor:
        """(..., H, W) filled up to whole tokens, as the model does it."""
        return pad_to_patch_size(tensor, (self.family.token_cells,) * 2)

    def lies_over(self, value: Any) -> bool:
        """Whether an input has a place for each latent."""
        return isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[-2:]) == self.size

    def strip(self, device: Device, part: StripPart, x: Tensor, inputs: Inputs) -> Tensor:
        """(B, C, rows of latents, W): one device's prediction of the padded latent."""
        rows, cells, there = part.own, self.family.token_cells, device.device
        latents = slice(rows.start * cells, rows.stop * cells)
        own = {
            name: value[..., latents, :] if self.lies_over(self.inputs[name]) else value
            for name, value in inputs.items()
            if name != "transformer_options"
        }
        options = self.inputs["transformer_options"]
        added = {KEY: part, FRAME_PART: part.place(options.get(FRAME_PART))}
        own = {name: on_device(value, there) for name, value in own.items()}
        call = WrapperExecutor.new_class_executor(device.model._apply_model, device.model, self.wrappers)
        return call.execute(
            x[..., latents, :].to(there),
            self.t.to(there),
            own.pop("c_concat"),
            own.pop("c_crossattn"),
            self.residuals(rows, there),
            inner_options(device, options, **added),
            **own,
        )

    def residuals(self, rows: range, device: torch.device) -> dict[str, list[Tensor | None]] | None:
        """The ControlNets' residuals of some rows, on a device."""
        if self.control is None:
            return None
        height, width = self.grid
        tokens = slice(rows.start * width, rows.stop * width)

        def own(residual: Tensor | None) -> Tensor | None:
            if residual is None:
                return None
            if residual.ndim != 3 or residual.shape[1] != height * width:
                raise StripError(f"a ControlNet's residual of shape {tuple(residual.shape)} has no row for each token")
            return residual[:, tokens].to(device)

        return {place: [own(residual) for residual in each] for place, each in self.control.items()}


def window_of(options: dict[str, Any]) -> WindowPatch | None:
    """CLEAR's part of a model, by the ``transformer_options`` of a call, or None."""
    found = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}).get(WINDOW, [])
    return found[-1] if found else None
