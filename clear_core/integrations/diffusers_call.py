"""What one call of a diffusers FLUX with CLEAR is about: a forward pre-hook reads it and hands it to the blocks."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..effective import Effective
from ..families import FLUX1, ModelShape
from ..layout import SequenceLayout
from ..rope import RopeStretch, cos_sin, ntk_theta
from ..settings import ClearSettings
from .diffusers_parallel import ContextParallel
from .diffusers_processor import ClearCall
from .frame import read_frame

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

NAMES = FLUX1.diffusers


@torch.compiler.disable
def describe_call(
    settings: ClearSettings,
    shape: ModelShape,
    parallel: ContextParallel,
    transformer: FluxTransformer2DModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[()], dict[str, Any]]:
    """Forward pre-hook: adds the :class:`ClearCall` of this call to ``joint_attention_kwargs``.

    It runs before diffusers' hooks, which cut the sequence for context parallelism, and so it sees the whole of it.

    Raises:
        ValueError: ``img_ids`` or ``txt_ids`` is missing, the image's ids are not one row-major grid, the base
            fades and ``timestep`` is not one noise level, or the sequence cannot be cut for several processes.
    """
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]
    values = dict(zip(names, args, strict=False)) | kwargs
    for name in ("img_ids", "txt_ids"):
        if values.get(name) is None:
            raise ValueError(f"the transformer was called without {name}, from which CLEAR reads the grid.")
    frame = read_frame(values["img_ids"])
    rotary = None
    embedder: Any = transformer.pos_embed
    txt_ids = values["txt_ids"][0] if values["txt_ids"].ndim == 3 else values["txt_ids"]
    effective = Effective.of(settings, shape, SequenceLayout(txt_ids.shape[0], frame.grid, frame.reference))
    if not effective.stretch.is_off and type(embedder).__name__ == NAMES.embedder:
        ids = torch.cat([txt_ids.to(frame.exact_ids), frame.exact_ids])
        rotary = stretched_rotary(effective.stretch, embedder, ids, values.get("timestep"))
    part = parallel.part(transformer, effective)
    if part is not None:
        rotary = None if rotary is None else (part.own(rotary[0]), part.own(rotary[1]))
        # Older ids have a dimension for the batch, which diffusers would not cut.
        values["txt_ids"] = txt_ids
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            # They are added to the own image tokens; diffusers' plan has no place for a list of any length.
            if values.get(name) is not None:
                values[name] = [part.own_image(sample, 1) for sample in values[name]]
    call = ClearCall(effective, rotary, part)
    values["img_ids"] = frame.exact_ids
    values["joint_attention_kwargs"] = dict(values.get("joint_attention_kwargs") or {}, clear_call=call)
    return (), values


def stretched_rotary(
    stretch: RopeStretch, embedder: Any, ids: Tensor, timestep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (L, D), as ``embedder`` gives them for ids (L, 3), under a stretched base.

    Args:
        stretch: What is done to the base.
        embedder: The model's ``FluxPosEmbed``.
        ids: Positions of text, image and reference tokens.
        timestep: (B,) noise levels of the call, 0 to 1.

    Raises:
        ValueError: The base fades, and ``timestep`` is missing or not one noise level.
    """
    factor = stretch.base_factor
    if factor is not None:
        return type(embedder)(theta=ntk_theta(embedder.theta, factor), axes_dim=embedder.axes_dim)(ids)
    sigma = 1.0
    if stretch.fades:
        levels = [] if timestep is None else timestep.unique().tolist()
        if len(levels) != 1:
            raise ValueError(
                f"the transformer was called with the timesteps {levels}; expected one for the whole batch, which "
                "ntk 'fading' goes by: split the batch, or use ntk 'clipped'."
            )
        sigma = float(levels[0])
    cos, sin = cos_sin(ids, stretch.frequencies(embedder.theta, embedder.axes_dim, sigma))
    return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
