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
from ....clear_core.families import FLUX1
from ....clear_core.memory import Activations
from .block_forecast import planned_chunk
from .host_estimate import NO_ESTIMATE_WORDS, WORDS, HostCall
from .picture_model import PictureModel, picture_model
from .sequence import Cond, sequence_of
from .transformer import Transformer, transformer_of
from .window_patch import WindowPatch

HINT_CHANNELS = 16
"""Of every layer in the host's encoder for pictures."""


def memory_plan(model: ModelPatcher, conds: Iterable[Cond] = (), picture: PictureModel | None = None) -> MemoryPlan:
    """What the calls of a sampling take: counted where the model's blocks are known, else by the host's estimate.

    Args:
        model: Of any family.
        conds: All prompts that are connected; none for a prompt of usual length.
        picture: What is known of the model, if the caller has read it with its VAE.

    Raises:
        ValueError: The model makes no pictures.
    """
    conds, picture = list(conds), picture or picture_model(model)
    transformer, source = transformer_of(model), ""
    if transformer is None:
        calls: list[Any] = [HostCall.of(model, picture, cond) for cond in conds or [{}]]
        source = WORDS if calls[0].has_estimate else NO_ESTIMATE_WORDS
    else:
        calls = list(dict.fromkeys(call_memory(model, cond, picture, transformer) for cond in conds or [{}]))
    controls = [cond["control"] for cond in conds if cond.get("control") is not None]
    models = {id(each): each for control in controls for each in control.get_models() if is_beside(each, model)}
    weights = model.model_size() + sum(each.model_size() for each in models.values())
    return MemoryPlan(tuple(calls), weights, source)


def is_beside(one: ModelPatcher, model: ModelPatcher) -> bool:
    """Whether both lie on one card: a ControlNet may have clones for others."""
    return one.load_device == model.load_device


def call_memory(model: ModelPatcher, cond: Cond, picture: PictureModel, transformer: Transformer) -> CallMemory:
    """What a call with one prompt takes, but for its image."""
    layout, host = sequence_of(picture, cond, (0, 0)), picture.host
    observes = any(isinstance(wrapper, WindowPatch) for wrapper in model.get_all_wrappers(WrappersMP.APPLY_MODEL))
    controls = [control_memory(control) for control in chain_of(cond)]
    return CallMemory(
        transformer.activations,
        layout.text,
        layout.reference,
        planned_chunk(model, cond) if host else None,
        observes and host is not None and host.calls_post_input,
        tuple(control for control in controls if control is not None),
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
    params, pixels = model.params, FLUX1.token_pixels**2
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
