"""One condition on several devices: which steps are cut into strips, and which are left to the host.

Source: ``comfy.patcher_extension.WrappersMP.CALC_COND_BATCH``; ``comfy.samplers.get_area_and_mult`` and
``_calc_cond_batch_multigpu``, which deals out conditions; ComfyUI 0.23 to 0.33.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..crop.crop_conditioning import Cond
from ..model.devices import DEVICES, Devices, options_for
from ..model.family import row_of
from ..model.notices import Notices
from ..model.rope_embedder import PositionEmbedder, is_plain
from .others import foreign_calls
from .strip_call import KEY, StripCalls


@dataclass(frozen=True, eq=False)
class StripsPatch:
    """The CALC_COND_BATCH wrapper that CLEARAttention adds to its clone of the model.

    Attributes:
        notices: Log lines, each once per node.
    """

    notices: Notices = field(default_factory=Notices)

    def install(self, model: ModelPatcher) -> None:
        """Put it on a clone, in place of an earlier one."""
        for wrapper_type, wrapper in (
            (WrappersMP.CALC_COND_BATCH, self),
            (WrappersMP.APPLY_MODEL, StripCalls(self.notices)),
        ):
            model.remove_wrappers_with_key(wrapper_type, KEY)
            model.add_wrapper_with_key(wrapper_type, KEY, wrapper)
        # Outermost, so that CLEAR's other wrappers run around each strip's call.
        others = model.wrappers[WrappersMP.APPLY_MODEL]
        model.wrappers[WrappersMP.APPLY_MODEL] = {KEY: others.pop(KEY), **others}

    def __call__(
        self,
        executor: WrapperExecutor,
        model: Any,
        conds: list[list[Cond] | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """One (B, C, H, W) prediction for each list of conditions.

        With fewer conditions than devices every call of the model is cut into strips; else the host deals the
        conditions out to the devices.
        """
        devices = Devices.of(model_options)
        if devices is None:
            return executor(model, conds, x_in, timestep, model_options)
        running = running_conds(conds, x_in, timestep)
        if not 0 < len(running) < len(devices.each):
            return executor(model, conds, x_in, timestep, model_options)
        reason = obstacle(devices, running, model_options, x_in)
        if reason is not None:
            self.notices.log_once(reason, f"{reason}, so the picture is not cut into strips for several devices.")
            return executor(model, conds, x_in, timestep, model_options)
        for device in devices.each[1:]:
            patcher = device.model.current_patcher
            patcher.prepare_state(timestep, {**model_options, "ignore_multigpu": True})
            # A condition of an earlier step may have left its LoRA there.
            patcher.apply_hooks(hooks=None)
        # For the host it is a step on the first device.
        options = options_for(devices.each[0], model_options, **{DEVICES: devices})
        return executor(model, conds, x_in, timestep, options)


def running_conds(conds: list[list[Cond] | None], x_in: Tensor, timestep: Tensor) -> list[Cond]:
    """The conditions that the host evaluates in a step; the others are out of their range of the sampling."""
    return [
        cond
        for each in conds
        for cond in each or ()
        if comfy.samplers.get_area_and_mult(cond, x_in, timestep) is not None
    ]


def obstacle(devices: Devices, running: list[Cond], model_options: dict[str, Any], x_in: Tensor) -> str | None:
    """Why the calls of a step cannot be cut into strips, or None."""
    host = row_of(devices.each[0].model)
    if host is None or host.embedder is None or not host.can_be_cut:
        return f"positions or padding of {host.family.name if host else 'this model'} belong to the whole picture"
    if x_in.ndim != 4:
        return f"the latent has the shape {tuple(x_in.shape)}"
    if any(cond.get("hooks") is not None for cond in running):
        return "a condition has LoRA hooks, which the host applies on the first device"
    foreign = foreign_calls(model_options)
    if foreign:
        return f"{', '.join(foreign)} may need the whole picture"
    for device in devices.each:
        embedder = getattr(device.model.diffusion_model, host.embedder.attribute, None)
        # Wrapped or not, another node's may read off the ids how large the picture is.
        own = embedder.base if isinstance(embedder, PositionEmbedder) else embedder
        if own is embedder or not is_plain(own):
            return f"the positions that {type(own).__name__} makes cannot be moved to a strip"
    return None


def add_strips(model: ModelPatcher) -> ModelPatcher:
    """``model`` itself, a clone of the caller's, now with strips on several devices."""
    StripsPatch().install(model)
    return model
