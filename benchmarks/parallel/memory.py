"""Memory of each card if several work on one picture, calculated as in ``docs/memory.md``."""

from __future__ import annotations

import math

from clear_core import ClearSpec
from clear_core.call_memory import CallMemory
from clear_core.families import FLUX1
from clear_core.memory import ENGINE_COPIES, RUNTIME_BYTES, Activations
from clear_core.parallel import split_rows, strip_traffic

from ..memory_table import WEIGHTS
from .estimate import FLUX, HEADS, layout_of

BORDER_COPIES = 4
"""Of the border's keys and values: as sent, as received, and put together with own rows around it."""

STRIP_COPIES = 1
"""Hidden states that a strip's attention holds beside that: parts that are merged, and their log-sum-exps."""

WHOLE_STATES = 2
"""Hidden states that tensor parallelism does not cut: the block's input, as it is and normalised."""


def strips_bytes(side: int, ranks: int, radius: int, chunked: bool) -> int:
    """Peak of the card that takes most, in strips.

    Args:
        side: Of a square picture in pixels.
        ranks: Number of cards.
        radius: Of the windows in tokens.
        chunked: Whether blocks work on some tokens at a time, as in ComfyUI; not in diffusers.
    """
    layout = layout_of(side)
    call = CallMemory() if chunked else CallMemory(chunk=None)
    rows = max(len(own) for own in split_rows(layout.grid[0], ranks))
    border = max(one.border for one in strip_traffic(layout, ClearSpec(radius), ranks, **FLUX))
    copies = ENGINE_COPIES + STRIP_COPIES * (ranks > 1)
    activations = call.peak_bytes(rows * layout.grid[1], engine_copies=copies) + BORDER_COPIES * border
    return int(WEIGHTS["bf16"]) + RUNTIME_BYTES + activations


def heads_bytes(side: int, ranks: int) -> int | None:
    """The same with heads dealt out, in diffusers; None if they cannot be."""
    if HEADS % ranks:
        return None
    layout = layout_of(side)
    call = CallMemory(chunk=None, text=-(-layout.text // ranks))
    copies = ENGINE_COPIES + heads_copies(ranks)
    return int(WEIGHTS["bf16"]) + RUNTIME_BYTES + call.peak_bytes(-(-layout.image // ranks), engine_copies=copies)


def heads_copies(ranks: int) -> int:
    """Hidden states of the own tokens that ``attend_by_heads`` holds around its attention, rounded up.

    q, k and v as sent to others, as received with the own ones, and put together.
    """
    return 0 if ranks == 1 else math.ceil(3 * (ranks - 1) / ranks + 3 + 3)


def cut_weights() -> int:
    """Bytes in bf16 of the weights that diffusers' plan for tensor parallelism cuts: those of attention and MLPs.

    The rest, mostly modulation, stays whole on every card. Source: ``FluxTransformer2DModel._tp_plan`` in diffusers
    0.42.
    """
    of_a_stream = 4 + 2 * Activations().mlp_ratio
    return int((2 * FLUX1.num_double + FLUX1.num_single) * of_a_stream * FLUX1.width**2) * 2


def tensor_parallel_bytes(side: int, ranks: int) -> int | None:
    """The same with the weights cut, in diffusers; None if the heads cannot be dealt out."""
    if HEADS % ranks:
        return None
    layout, shape, call = layout_of(side), Activations(), CallMemory(chunk=None)
    weights = int(WEIGHTS["bf16"]) - cut_weights() + cut_weights() // ranks
    states = shape.single_block_states(layout.length, None, ENGINE_COPIES)
    cut = (states - WHOLE_STATES) * shape.hidden_bytes(layout.length) * (1 - 1 / ranks)
    return weights + RUNTIME_BYTES + call.peak_bytes(layout.image) - int(cut)
