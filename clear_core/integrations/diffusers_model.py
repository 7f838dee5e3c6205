"""Which models of diffusers take CLEAR, and where they attend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..families import IN_DIFFUSERS, QWEN_IMAGE, Family, ModelShape
from ..settings import ClearSettings
from ..weights.naming import DIFFUSERS, STREAMS, Stream
from ..wording import quoted
from .diffusers_processor import ClearAttnProcessor

Block = tuple[Stream, int]
"""Stream ("double" or "single") and index of a block."""

ATTENTIONS = ("attn", "attn2")
"""Names of the attention modules of a block. SD3.5 Medium has a second one, of the image alone."""


def attention_modules(transformer: Any) -> Iterator[tuple[Block, Any]]:
    """(block, its attention module), double blocks first; a foreign block without one stands for itself.

    A block with two attention modules comes twice.
    """
    for stream in STREAMS:
        for index, block in enumerate(getattr(transformer, DIFFUSERS.blocks[stream], ())):
            found = [module for name in ATTENTIONS if (module := getattr(block, name, None)) is not None]
            for module in found or [block]:
                yield (stream, index), module


def shape_of(transformer: Any) -> ModelShape:
    """The family and the blocks of a model.

    Raises:
        ImportError, TypeError: As :func:`family_of`.
    """
    family, config = family_of(transformer), transformer.config
    return ModelShape(
        family,
        config["num_layers"],
        config.get("num_single_layers", 0),
        config["num_attention_heads"] * config["attention_head_dim"],
        config["attention_head_dim"],
    )


def family_of(transformer: Any) -> Family:
    """The family of a model.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: It is not a transformer of a family with windows.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "clear_core.integrations.diffusers needs diffusers 0.32 or later; install it, or a newer one, with pip."
        ) from error
    for family in IN_DIFFUSERS:
        # Older versions lack the newer classes.
        known = getattr(diffusers, family.diffusers.transformer, None)
        if known is not None and isinstance(transformer, known):
            return family
    names = [family.diffusers.transformer for family in IN_DIFFUSERS]
    hint = "apply CLEAR before torch.compile" if hasattr(transformer, "_orig_mod") else "pass pipe.transformer"
    raise TypeError(
        f"transformer is a {type(transformer).__name__}; expected a diffusers {', '.join(names[:-1])} or {names[-1]} "
        f"({hint})."
    )


def check_model(transformer: Any, family: Family) -> None:
    """Raise with an error message if CLEAR cannot be applied.

    Raises:
        ValueError: A block has CLEAR already, or a processor that CLEAR would displace; or the model makes layers.
    """
    if family is QWEN_IMAGE and transformer.config.get("use_layer3d_rope"):
        raise ValueError(
            "this Qwen-Image makes a picture of several layers (use_layer3d_rope), and windows of one layer would cut "
            "the layers off from each other; use a Qwen-Image or Qwen-Image-Edit without layers."
        )
    for (stream, index), attn in attention_modules(transformer):
        processor = getattr(attn, "processor", attn)
        if isinstance(processor, ClearAttnProcessor):
            raise ValueError("CLEAR is already on this transformer; remove() it first.")
        name = type(processor).__name__
        if name not in family.diffusers.processors:
            raise ValueError(
                f"{stream} block {index} attends through {name}, which CLEAR would displace; unload "
                "the adapter or kernel that set it first."
            )


def check_processors(transformer: Any) -> None:
    """Raise at a call if other code has set processors since CLEAR was applied: their blocks would attend densely.

    Raises:
        ValueError: A block no longer attends through CLEAR.
    """
    for (stream, index), attn in attention_modules(transformer):
        processor = getattr(attn, "processor", attn)
        if not isinstance(processor, ClearAttnProcessor):
            raise ValueError(
                f"{stream} block {index} no longer attends through CLEAR but through {type(processor).__name__}, which "
                "other code has set since apply_clear (loading an IP-Adapter and fusing projections do); remove() "
                "CLEAR and apply it again after that code, or leave CLEAR off."
            )


def check_settings(settings: ClearSettings, family: Family, parallel: object) -> None:
    """Raise with an error message if a family cannot have what was asked for.

    Raises:
        ValueError: It has no rotary base to stretch, or no windows on several processes.
    """
    if family.diffusers.embedder is None and (settings.ntk_factor not in (0, 1) or settings.ntk != "constant"):
        raise ValueError(
            f"ntk_factor is {settings.ntk_factor:g} and ntk {quoted(settings.ntk)}, but {family.name} has a table of "
            "positions and no rotary base to stretch; leave both out."
        )
    if parallel is not None and not family.diffusers.context_parallel:
        able = ", ".join(each.name for each in IN_DIFFUSERS if each.diffusers.context_parallel)
        raise ValueError(
            f"parallel is {quoted(parallel)}, which CLEAR has for {able} alone, not for {family.name}; leave it out."
        )
