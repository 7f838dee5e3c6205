"""What the calls of a model take with given prompts: read once, for the tiles, the host, ``info`` and CLEARInspect.

Source: ``comfy.ldm.flux.controlnet.ControlNetFlux``, ``comfy.controlnet.ControlBase``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import comfy.model_management
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....clear_core.call_memory import CallMemory, ControlMemory, MemoryPlan
from ....clear_core.layout import TOKEN_PIXELS
from ....clear_core.memory import Activations
from .attention_override import WindowPatch
from .block_forecast import planned_chunk
from .family import host_family
from .sequence import Cond, sequence_of

HINT_CHANNELS = 16
"""Of every layer in the host's encoder for pictures."""


def memory_plan(model: ModelPatcher, conds: Iterable[Cond] = ()) -> MemoryPlan:
    """What the calls of a sampling take.

    Args:
        model: A FLUX.1 or a relative.
        conds: All prompts that are connected; none for a prompt of usual length.

    Raises:
        ValueError: CLEAR does not work on the model.
    """
    conds = list(conds)
    calls = dict.fromkeys(call_memory(model, cond) for cond in conds or [{}])
    controls = [cond["control"] for cond in conds if cond.get("control") is not None]
    models = {id(each): each for control in controls for each in control.get_models() if is_beside(each, model)}
    return MemoryPlan(tuple(calls), model.model_size() + sum(each.model_size() for each in models.values()))


def is_beside(one: ModelPatcher, model: ModelPatcher) -> bool:
    """Whether both lie on one card: a ControlNet may have clones for others."""
    return one.load_device == model.load_device


def call_memory(model: ModelPatcher, cond: Cond) -> CallMemory:
    """What a call with one prompt takes, but for its image."""
    layout = sequence_of(model, cond, (0, 0))
    observes = any(isinstance(wrapper, WindowPatch) for wrapper in model.get_all_wrappers(WrappersMP.APPLY_MODEL))
    controls = [control_memory(control) for control in chain_of(cond)]
    return CallMemory(
        activations_of(model),
        layout.text,
        layout.reference,
        planned_chunk(model, cond),
        observes and host_family(model).calls_post_input,
        tuple(control for control in controls if control is not None),
    )


def activations_of(model: ModelPatcher) -> Activations:
    """Shape of the hidden states of a FLUX in the host."""
    config = model.model.model_config.unet_config
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return Activations(
        config["hidden_size"],
        config.get("mlp_ratio", 4.0),
        comfy.model_management.dtype_size(dtype),
        config.get("context_in_dim", Activations.text_width),
        bool(config.get("yak_mlp")),
    )


def chain_of(cond: Cond) -> list[Any]:
    """The ControlNets of a prompt in the order in which they run."""
    chain: list[Any] = []
    control = cond.get("control")
    while control is not None:
        chain.insert(0, control)
        control = control.previous_controlnet
    return chain


def control_memory(control: Any) -> ControlMemory | None:
    """What a ControlNet takes; None for one that is no FLUX ControlNet, whose memory is not known."""
    model: Any = getattr(control, "control_model", None)
    if not isinstance(model, ControlNetFlux):
        return None
    dtype = getattr(control, "manual_cast_dtype", None) or model.dtype
    params, pixels = model.params, TOKEN_PIXELS**2
    return ControlMemory(
        Activations(
            model.hidden_size, params.mlp_ratio, comfy.model_management.dtype_size(dtype), params.context_in_dim
        ),
        len(model.double_blocks),
        len(model.single_blocks),
        text=1 if model.num_union_modes else 0,
        hint=model.pos_embed_input.in_features if model.latent_input else 3 * pixels,
        # The encoder of a picture works on both ends of a layer, at full size.
        hint_work=0 if model.latent_input else (3 + 2 * HINT_CHANNELS) * pixels,
    )
