"""ControlNets beside a CLEAR model: their own FLUX blocks attend in the model's windows.

The host gives a ControlNet's model no transformer_options, so it gets neither an attention override nor a stretched
base. For the length of a sampling run the conditioning therefore holds shallow copies of its ControlNets. Nothing of
the originals is written to, so they can serve other samplers meanwhile, and an ended run leaves nothing on them.

Source: ``comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE``; ``comfy.controlnet.ControlNet.get_control``, which hands
its model whatever ``extra_conds`` names; ``comfy.ldm.flux.controlnet.ControlNetFlux``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

from comfy.ldm.flux.controlnet import ControlNetFlux
from torch import Tensor, nn

from ....clear_core.effective import Effective
from ....clear_core.layout import SequenceLayout
from ....clear_core.rope import NOT_STRETCHED
from .attention_override import OVERRIDE, WindowCall
from .control_strips import ControlStrips
from .devices import DEVICES, Device
from .placed_control import PlacedControlModel
from .rope_embedder import PositionEmbedder, foreign_embedder, positions, stretched
from .strip_part import StripPart
from .tile_frame import KEY as FRAME_PART
from .tile_frame import FramePart
from .window_patch import WindowPatch

OPTIONS = "transformer_options"

# A later host may hand them to a ControlNet's model by itself; named twice, they would be refused.
HOST_HANDS_OVER = OPTIONS in inspect.signature(ControlNetFlux.forward_orig).parameters

DENSE_TOKENS = 16384
"""A ControlNet that attends to more image tokens than this without the window is worth a line in the log."""


@dataclass(frozen=True)
class ControlPatch:
    """The SAMPLER_SAMPLE wrapper that one CLEAR node adds to its clone of the model, beside its window."""

    window: WindowPatch

    def __call__(
        self,
        executor: Callable[..., Tensor],
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run a sampling whose ControlNets are copies with the window."""
        conds = getattr(guider, "conds", None) or {}
        if not any(cond.get("control") is not None for each in conds.values() for cond in each):
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        copies = ControlCopies(self.window, guider.inner_model)
        replaced = {name: [copies.in_cond(cond) for cond in each] for name, each in conds.items()}
        if not copies.made:
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        copies.say_left_out(noise)
        guider.conds = replaced
        try:
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        finally:
            guider.conds = conds


@dataclass
class ControlCopies:
    """The copies of one run.

    Attributes:
        window: Of the CLEAR node.
        base: The model that samples, a ``comfy.model_base.BaseModel``.
        made: Copies by the id of what they stand for, so that conditionings that share a ControlNet still do.
        others: ControlNet models that are left as they are, and why.
    """

    window: WindowPatch
    base: Any
    made: dict[int, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def in_cond(self, cond: dict[str, Any]) -> dict[str, Any]:
        """A conditioning with the copy of its ControlNet."""
        if cond.get("control") is None:
            return cond
        return {**cond, "control": self.of(cond["control"])}

    def of(self, control: Any) -> Any:
        """The copy of a ControlNet and of those before it in the chain; itself where none of them is FLUX."""
        if id(control) not in self.made:
            self.made[id(control)] = self.copied(control)
        return self.made[id(control)]

    def copied(self, control: Any) -> Any:
        model, previous = getattr(control, "control_model", None), getattr(control, "previous_controlnet", None)
        is_flux = isinstance(model, ControlNetFlux)
        new_previous = None if previous is None else self.of(previous)
        if model is not None and not is_flux and not isinstance(model, WindowedControlModel):
            compiled = getattr(model, "_orig_mod", None)  # torch.compile's, which cannot be given windows from outside
            self.others.append(
                f"{type(compiled).__name__} is compiled"
                if isinstance(compiled, ControlNetFlux)
                else f"{type(model).__name__} is no FLUX ControlNet"
            )
        if not is_flux and new_previous is previous:
            return control
        made = copy_of(control)
        made.previous_controlnet = new_previous
        if is_flux:
            made.control_model = WindowedControlModel(model, self.window, self.base)
            if not HOST_HANDS_OVER:
                made.extra_conds = [*control.extra_conds, OPTIONS]
        clones = getattr(control, "multigpu_clones", None)
        if clones:
            made.multigpu_clones = {device: self.of(clone) for device, clone in clones.items()}
            if is_flux:
                made.control_model.clones = {
                    device: clone.control_model for device, clone in made.multigpu_clones.items()
                }
        return made

    def say_left_out(self, noise: Tensor) -> None:
        """Name the ControlNets that should have the window and cannot."""
        if noise.ndim != 4:
            return
        layout = SequenceLayout(0, self.window.grid_of(noise))
        if Effective.of(self.window.settings, self.window.shape, layout).controlnet:
            for name in self.others:
                self.window.notices.log_once(f"control {name}", f"the ControlNet model {name}; it is left as it is.")


def copy_of(control: Any) -> Any:
    """A shallow copy of a ControlNet; what it holds of itself is the copy's.

    Tiled samplers put methods on the object, and Advanced-ControlNet keeps its ``super()`` there.
    """
    made = copy.copy(control)
    for name, value in vars(control).items():
        if getattr(value, "__self__", None) is not control:
            continue
        if isinstance(value, MethodType):
            setattr(made, name, MethodType(value.__func__, made))
        elif isinstance(value, super):
            setattr(made, name, super(value.__thisclass__, made))  # pyright: ignore[reportAttributeAccessIssue]
    return made


class WindowedControlModel:
    """Stands for the model of a FLUX ControlNet and attends as the CLEAR model does; all else is the model's own.

    Args:
        model: Shared with every other user of the ControlNet; only read.
        window: Of the CLEAR node.
        base: The model that samples.

    Attributes:
        clones: The same ControlNet on the run's other devices.
    """

    def __init__(self, model: ControlNetFlux, window: WindowPatch, base: Any):
        self.model = model
        self.window = window
        self.base = base
        self.clones: dict[Any, WindowedControlModel] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "model"), name)

    def __call__(
        self, x: Tensor, *args: Any, transformer_options: dict[str, Any] | None = None, **inputs: Any
    ) -> dict[str, Any]:
        """The residuals by block, row-major, for a latent x: (B, C, H, W)."""
        options = transformer_options or {}
        if HOST_HANDS_OVER:
            inputs[OPTIONS] = options
        part = options.get(FRAME_PART)
        layout = SequenceLayout(0, self.window.grid_of(x))
        in_range = "sigmas" not in options or self.window.is_in_range(self.base.model_sampling, options["sigmas"])
        call = WindowCall(self.window, layout, part.grid if part else layout.grid, None, in_range)
        if not call.effective.controlnet:
            if layout.image > DENSE_TOKENS:
                self.window.notices.log_once(
                    f"dense {self.words}",
                    f"the ControlNet {self.words} attends to all of "
                    f"{layout.image} image tokens; set controlnet to auto to give it the window.",
                )
            model = PlacedControlModel(self.model, part) if part else self.model
            return model(x, *args, **inputs)
        # Where another node's embedder keeps its base from CLEAR, the ControlNet's places stay with the model's.
        is_foreign = foreign_embedder(self.base.diffusion_model) is not None
        stretch = NOT_STRETCHED if is_foreign else call.effective.stretch
        # The ControlNet's own timesteps are rounded to its dtype.
        sigmas = options.get("sigmas", inputs.get("timesteps"))
        view, devices = self.view_for(call, part), options.get(DEVICES)
        if devices is not None:
            multiple = call.effective.spec.down_factor
            vars(view)["forward_orig"] = ControlStrips(
                devices, layout.grid, part, multiple, partial(self.in_strip, call, partial(stretched, stretch, sigmas))
            )
        with stretched(stretch, sigmas):
            residuals = view(x, *args, **inputs)
        if not call.was_reached:
            self.window.notices.log_once(
                f"bypassed {self.words}",
                f"the ControlNet {self.words} computes attention by itself, so it is left as it is.",
            )
        return residuals

    def in_strip(
        self, call: WindowCall, context: Callable[[], Any], device: Device, strip: StripPart, *args: Any, **inputs: Any
    ) -> dict[str, Any]:
        """The residuals of one strip, on one of the devices that share a call.

        Args:
            call: The whole call.
            context: For the position embedder.
            args, inputs: Of the model's ``forward_orig``.
        """
        model = self.clones.get(device.device, self)
        own = SequenceLayout(0, (len(strip.own), strip.grid[1]))
        strip_call = WindowCall(self.window, own, call.frame_grid, None, call.in_range, strip)
        view = model.view_for(strip_call, None)
        with context():
            residuals = type(view).forward_orig(view, *args, **inputs)
        call.was_reached |= strip_call.was_reached
        return residuals

    @property
    def words(self) -> str:
        """The model's kind and size, since the host does not keep its file's name."""
        union = ", Union" if getattr(self.model, "num_union_modes", 0) else ""
        return (
            f"{type(self.model).__name__} ({len(self.model.double_blocks)} double and "
            f"{len(self.model.single_blocks)} single blocks{union})"
        )

    def view_for(self, call: WindowCall, part: FramePart | None) -> ControlNetFlux:
        """A shallow copy of the model whose blocks use the window of one call; it shares all weights."""
        view = copy.copy(self.model)
        # Found before the submodules, which stay as they are and belong to all copies.
        vars(view).update(
            pe_embedder=self.embedder_for(call, part),
            double_blocks=[windowed_block(block, call) for block in self.model.double_blocks],
            single_blocks=[windowed_block(block, call) for block in self.model.single_blocks],
        )
        return view

    def embedder_for(self, call: WindowCall, part: FramePart | None) -> Callable[[Tensor], Tensor]:
        """The position embedder of one call, which learns the length of the text from the ids it is given."""
        base = PositionEmbedder(self.model.pe_embedder)

        def embed(ids: Tensor) -> Tensor:
            # A Union ControlNet puts a token for its mode before the text.
            call.set_layout(SequenceLayout(ids.shape[1] - call.layout.image, call.layout.grid))
            # The ids of a strip are the whole picture's already.
            with positions(layout=None if call.strip else call.layout, part=part):
                return base(ids)

        return embed


def windowed_block(block: nn.Module, call: WindowCall) -> Callable[..., Any]:
    """A FLUX block that attends by ``call``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        options = {**(kwargs.pop(OPTIONS, None) or {}), OVERRIDE: call.attend}
        return block(*args, **kwargs, transformer_options=options)

    return run
