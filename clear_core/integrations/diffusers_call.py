"""What one call of a diffusers model with CLEAR is about: a forward pre-hook reads it and hands it to the blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..effective import Effective
from ..families import Family, ModelShape
from ..layout import SequenceLayout
from ..rope import RopeStretch, cos_sin, ntk_theta
from ..settings import ClearSettings
from .diffusers_model import check_processors
from .diffusers_parallel import ContextParallel
from .diffusers_processor import ClearCall
from .diffusers_text import TextMask, chroma_mask, qwen_mask
from .frame import read_frame, read_shapes

Values = dict[str, Any]
"""Arguments of a call of the model, by name."""


@dataclass(frozen=True, eq=False)
class Sequence:
    """The tokens of one call.

    Attributes:
        text: Number of text tokens.
        grid: (h, w) of the image in tokens.
        reference: Number of reference tokens.
        rotary: What the model's embedder gives for them under a stretched base; None if it is not the family's own.
    """

    text: int
    grid: tuple[int, int]
    reference: int
    rotary: Callable[[RopeStretch], tuple[Tensor, Tensor]] | None


@torch.compiler.disable
def describe_call(
    settings: ClearSettings,
    shape: ModelShape,
    parallel: ContextParallel,
    transformer: Any,
    args: tuple[Any, ...],
    kwargs: Values,
) -> tuple[tuple[()], Values]:
    """Forward pre-hook: adds the :class:`ClearCall` of this call to the arguments of its attention.

    It runs before diffusers' hooks, which cut the sequence for context parallelism, and so it sees the whole of it.

    Raises:
        ValueError: A block no longer attends through CLEAR, what tells the grid is missing or tells none, the mask is
            of another kind, the base fades and ``timestep`` is not one noise level, or the sequence cannot be cut for
            several processes.
    """
    check_processors(transformer)
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]
    values = dict(zip(names, args, strict=False)) | kwargs
    family = shape.family.diffusers
    if values.get("kv_cache_mode") is not None:
        raise ValueError(
            f"the transformer was called with kv_cache_mode {values['kv_cache_mode']!r}, which keeps references out of "
            "the sequence and which CLEAR does not take; use the pipeline without a cache, or take CLEAR off."
        )
    sequence = _READERS[family.grid](shape.family, transformer, values)
    mask = _text_mask(shape.family, values, sequence)
    effective = Effective.of(settings, shape, SequenceLayout(mask.shown, sequence.grid, sequence.reference))
    rotary = None
    if not effective.stretch.is_off and sequence.rotary is not None:
        rotary = sequence.rotary(effective.stretch)
    part = parallel.part(transformer, effective)
    if part is not None:
        rotary = None if rotary is None else (part.own(rotary[0]), part.own(rotary[1]))
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            # They are added to the own image tokens; diffusers' plan has no place for a list of any length.
            if values.get(name) is not None:
                values[name] = [part.own_image(sample, 1) for sample in values[name]]
    call = ClearCall(effective, rotary, mask, mask.bias(effective.layout), part)
    values[family.attention_kwargs] = dict(values.get(family.attention_kwargs) or {}, clear_call=call)
    return (), values


def _needed(values: Values, *names: str) -> list[Any]:
    """Arguments of the call that tell the grid."""
    for name in names:
        if values.get(name) is None:
            raise ValueError(f"the transformer was called without {name}, from which CLEAR reads the grid.")
    return [values[name] for name in names]


def _by_ids(family: Family, transformer: Any, values: Values) -> Sequence:
    """FLUX.1, Chroma and FLUX.2: each token has its position."""
    img_ids, txt_ids = _needed(values, "img_ids", "txt_ids")
    embedder: Any = transformer.pos_embed
    frame = read_frame(img_ids, len(transformer.config["axes_dims_rope"]))
    # Older ids have a dimension for the batch, which context parallelism would not cut.
    txt_ids = txt_ids[0] if txt_ids.ndim == 3 else txt_ids
    values["img_ids"], values["txt_ids"] = frame.exact_ids, txt_ids
    rotary = None
    if type(embedder).__name__ == family.diffusers.embedder:
        ids = torch.cat([txt_ids.to(frame.exact_ids), frame.exact_ids])
        rotary = partial(stretched_rotary, embedder=embedder, ids=ids, timestep=values.get("timestep"))
    return Sequence(txt_ids.shape[0], frame.grid, frame.reference, rotary)


def _by_shapes(family: Family, transformer: Any, values: Values) -> Sequence:
    """Qwen-Image: each picture has its size."""
    text, img_shapes = _needed(values, "encoder_hidden_states", "img_shapes")
    frame, text_ids = read_shapes(img_shapes, text.shape[1])
    embedder: Any = transformer.pos_embed
    rotary = None
    if type(embedder).__name__ == family.diffusers.embedder:
        ids = torch.cat([text_ids, frame.exact_ids]).to(text.device)
        rotary = partial(
            complex_rotary, embedder=embedder, ids=ids, text=len(text_ids), timestep=values.get("timestep")
        )
    return Sequence(text.shape[1], frame.grid, frame.reference, rotary)


def _by_latent(_family: Family, transformer: Any, values: Values) -> Sequence:
    """SD3: the model itself cuts the latent into tokens. It refuses a latent larger than its table of positions."""
    latent, text = _needed(values, "hidden_states", "encoder_hidden_states")
    patch = transformer.config["patch_size"]
    return Sequence(text.shape[1], (latent.shape[-2] // patch, latent.shape[-1] // patch), 0, None)


_READERS: dict[str, Callable[[Family, Any, Values], Sequence]] = {
    "ids": _by_ids,
    "shapes": _by_shapes,
    "latent": _by_latent,
}


def _text_mask(family: Family, values: Values, sequence: Sequence) -> TextMask:
    """The call's text mask, which is taken out of it: blocks would make one of all pairs of tokens from it."""
    name = family.diffusers.text_mask
    mask = None if name is None else values.pop(name, None)
    if mask is None:
        return TextMask(sequence.text)
    if name == "attention_mask":
        return chroma_mask(mask, sequence.text, values["hidden_states"].shape[1])
    return qwen_mask(mask, sequence.text)


def stretched_rotary(
    stretch: RopeStretch, embedder: Any, ids: Tensor, timestep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (L, D), as ``embedder`` gives them for ids (L, axes), under a stretched base.

    Args:
        stretch: What is done to the base.
        embedder: The model's ``FluxPosEmbed`` or ``Flux2PosEmbed``.
        ids: Positions of text, image and reference tokens.
        timestep: (B,) noise levels of the call, 0 to 1.

    Raises:
        ValueError: The base fades, and ``timestep`` is missing or not one noise level.
    """
    factor = stretch.base_factor
    if factor is not None:
        return type(embedder)(theta=ntk_theta(embedder.theta, factor), axes_dim=embedder.axes_dim)(ids)
    cos, sin = cos_sin(ids, stretch.frequencies(embedder.theta, embedder.axes_dim, noise_level(stretch, timestep)))
    return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)


def complex_rotary(
    stretch: RopeStretch, embedder: Any, ids: Tensor, text: int, timestep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What ``embedder``, a ``QwenEmbedRope``, gives for image and for text under a stretched base.

    Args:
        stretch: What is done to the base.
        embedder: The model's ``QwenEmbedRope``.
        ids: (L, 3) positions of text, image and reference tokens.
        text: Number of text tokens T.
        timestep: (B,) noise levels of the call, 0 to 1.

    Returns:
        (L - T, D / 2) and (T, D / 2) complex.

    Raises:
        ValueError: As :func:`noise_level`.
    """
    frequencies = stretch.frequencies(embedder.theta, embedder.axes_dim, noise_level(stretch, timestep))
    turns = torch.complex(*cos_sin(ids, frequencies))
    return turns[text:], turns[:text]


def noise_level(stretch: RopeStretch, timestep: Tensor | None) -> float:
    """The noise level of a call, 0 to 1; 1 if nothing depends on it.

    Args:
        stretch: What is done to the base.
        timestep: (B,) noise levels.

    Raises:
        ValueError: The base fades, and ``timestep`` is missing or not one noise level.
    """
    if not stretch.fades:
        return 1.0
    levels = [] if timestep is None else timestep.unique().tolist()
    if len(levels) != 1:
        raise ValueError(
            f"the transformer was called with the timesteps {levels}; expected one for the whole batch, which "
            "ntk 'fading' goes by: split the batch, or use ntk 'clipped'."
        )
    return float(levels[0])
