"""Windows by torch's FlexAttention over 2-D tiles: a compiled, fused block-sparse kernel (CUDA by Triton, CPU by C++).

Image queries run in the kernel, in the tile order of :mod:`..tiling.plan`; text and reference queries are an ordinary
attention call of their own. Permuting into tile order happens here, so the model's tokens stay row-major.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from ..outside_image import attend_outside_image, empty_output, wants_grad
from ..pool import pool_tokens
from ..tiling.order import copy_from_tiles, copy_to_tiles
from ..tiling.plan import KEY_BLOCK, KEY_TILE_SIDE, QUERY_BLOCK, TilePlan, query_tile_size, tile_plan

# The compiler specialises on the integers 0 and 1. What may be 0 or 1 is handed to it with this much added.
_PAST_SPECIAL = 2

# The attention scale in the kernel is a multiple of one over this: more digits than float32 has.
_SCALE_STEPS = 2**30

# Row offsets inside the kernel are 32-bit.
_MOST_NUMBERS = 2**31 - 1


class FlexFailure(RuntimeError):
    """The kernel could not be compiled or run. The message is one line."""


@torch.compiler.disable
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: SequenceLayout,
    spec: ClearSpec,
    spatial_weight: Tensor | None,
    scale: float,
    chunk_bytes: int | None = None,
    on_chunk: Callable[[], None] | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """CLEAR attention; arguments as in :func:`clear_core.clear_attention`, already checked.

    Never compiled together with the model around it: the compiler would keep the first window for good. A chunk is
    a group of heads; by default all of them.

    Raises:
        FlexFailure: The kernel cannot be compiled or run; nothing runs unfused instead.
    """
    plan = tile_plan(layout, spec, q.device)
    mask = block_mask(plan, wants_grad(q, k, v))
    out = empty_output(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
    for heads in _head_groups(q, plan, chunk_bytes):
        _attend_image(
            q[:, heads],
            k[:, heads],
            v[:, heads],
            out[:, heads],
            None if lse is None else lse[:, heads],
            plan,
            mask,
            spatial_weight,
            scale,
        )
        if on_chunk is not None:
            on_chunk()
    attend_outside_image(q, k, v, out, lse, layout=layout, scale=scale, chunk_bytes=chunk_bytes, on_chunk=on_chunk)
    return (out, lse) if return_lse else out


def _head_groups(q: Tensor, plan: TilePlan, chunk_bytes: int | None) -> list[slice]:
    """Slices of the heads, each as large as the budget and the kernel's offsets allow."""
    batch, heads = q.shape[:2]
    queries = plan.query_tiles * QUERY_BLOCK
    keys = plan.prefix_blocks * KEY_BLOCK + queries
    head_dim = padded_head_dim(q.shape[-1])
    most = _MOST_NUMBERS // (batch * keys * head_dim)
    if chunk_bytes is not None:
        most = min(most, chunk_bytes // (2 * batch * (queries + keys) * head_dim * q.element_size()))
    groups = -(-heads // max(1, most))
    if batch == 1:
        # A kernel for a single head would be compiled apart.
        groups = min(groups, max(1, heads // 2))
    bounds = [heads * i // groups for i in range(groups + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def _attend_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    plan: TilePlan,
    mask: Any,
    spatial_weight: Tensor | None,
    scale: float,
) -> None:
    image = plan.layout.image_slice
    head_dim = q.shape[-1]
    queries, filled = _kernel_input(q, plan.query_tiles * QUERY_BLOCK)
    copy_to_tiles(q[:, :, image], filled[..., :head_dim], plan)
    keys, values = (_prefix_and_tiles(one, plan, spatial_weight) for one in (k, v))
    try:
        result = _compiled()(
            queries, keys, values, mask, _score_mod(scale), _kernel_options(q.device, q.dtype), lse is not None
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Compilers raise errors of many kinds, most of them private.
        raise FlexFailure(f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}") from error
    tiled = result if lse is None else result[0]
    copy_from_tiles(tiled.view(filled.shape)[..., :head_dim], out[:, :, image], plan)
    if lse is not None:
        copy_from_tiles(result[1].view(*filled.shape[:3], 1), lse[:, :, image, None], plan)


# ---- the kernel ----


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    score_mod: Callable[..., Tensor],
    kernel_options: dict[str, int] | None,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    from torch.nn.attention import flex_attention as flex

    if not torch.compiler.is_compiling():
        raise RuntimeError("FlexAttention was about to run without its compiled kernel; is torch.compile disabled?")
    options: dict[str, Any] = {
        "score_mod": score_mod,
        "block_mask": mask,
        "scale": 1.0,
        "kernel_options": kernel_options,
    }
    if not return_lse:
        return flex.flex_attention(q, k, v, **options)
    if hasattr(flex, "AuxRequest"):
        out, aux = flex.flex_attention(q, k, v, return_aux=flex.AuxRequest(lse=True), **options)
        return out, aux.lse
    return flex.flex_attention(q, k, v, return_lse=True, **options)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    # fullgraph: past the recompile limit torch raises instead of running unfused with every score in memory.
    return torch.compile(_fused, dynamic=True, fullgraph=True)


@lru_cache(maxsize=16)
def _kernel_options(device: torch.device, dtype: torch.dtype) -> dict[str, int] | None:
    """Block sizes that divide the tiles', and few enough pipeline stages for the card's shared memory."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    options = {"BLOCK_M": QUERY_BLOCK, "BLOCK_N": KEY_BLOCK}
    # 99 KB of shared memory on compute capability 8.6, 8.9 and 12.x; 163 KB and more on 8.0, 9.0 and 10.0.
    if torch.version.hip is None and torch.cuda.get_device_capability(device) not in ((8, 0), (9, 0), (10, 0)):
        options["num_stages"] = 2
    return options


def _score_mod(scale: float) -> Callable[..., Tensor]:
    """The attention scale, as an integer: a number with a fraction would be compiled in, one kernel for each."""
    steps = round(scale * _SCALE_STEPS) + _PAST_SPECIAL

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score * (steps - _PAST_SPECIAL) * (1 / _SCALE_STEPS)

    return score_mod


def padded_head_dim(head_dim: int) -> int:
    """The kernel takes powers of two; zeros change neither products nor values."""
    return max(16, 1 << (head_dim - 1).bit_length())


# ---- what the kernel is told to visit ----


def block_mask(plan: TilePlan, needs_grad: bool) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    known = inspect.signature(BlockMask.from_kv_blocks).parameters
    queries = plan.query_tiles * QUERY_BLOCK
    keys = plan.prefix_blocks * KEY_BLOCK + queries
    options: dict[str, Any] = {}
    if "compute_q_blocks" in known:
        options["compute_q_blocks"] = needs_grad
    if "seq_lengths" in known:
        options["seq_lengths"] = (queries, keys)
    partial_count, partial, full_count, full = kernel_lists(plan)
    # The CPU kernel, the transposed lists and older versions of torch read as many columns as there are key blocks.
    if needs_grad or plan.partial.device.type == "cpu" or len(options) < 2:
        columns = keys // KEY_BLOCK
        partial, full = (F.pad(one, (0, columns - one.shape[-1])) for one in (partial, full))
    return BlockMask.from_kv_blocks(
        partial_count,
        partial,
        full_count,
        full,
        BLOCK_SIZE=(QUERY_BLOCK, KEY_BLOCK),
        mask_mod=window_mask_mod(plan),
        **options,
    )


# One model runs one layout at a time; two of them for a pass at each of two sizes.
@lru_cache(maxsize=2)
def kernel_lists(plan: TilePlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Partial and full key blocks of every query block, the prefix included, as the kernel wants them.

    Returns:
        Counts (1, 1, query tiles) and lists (1, 1, query tiles, width), int32, for partial and for full blocks; both
        lists have one width, because older kernels step through both by the first one's stride.
    """
    with torch.inference_mode(False):
        whole = plan.prefix // KEY_BLOCK
        prefix = torch.arange(plan.prefix_blocks, dtype=torch.int32, device=plan.partial.device)
        prefix = prefix.expand(plan.query_tiles, -1)
        lists = []
        for blocks, tiles in ((prefix[:, whole:], plan.partial), (prefix[:, :whole], plan.full)):
            lists.append(torch.cat([blocks, tiles.to(torch.int32) + plan.prefix_blocks], dim=1))
        width = max(one.shape[1] for one in lists)
        partial, full = (F.pad(one, (0, width - one.shape[1]))[None, None] for one in lists)
        partial_count = plan.partial_count + (plan.prefix_blocks - whole)
        full_count = plan.full_count + whole
        return partial_count[None, None], partial, full_count[None, None], full


def window_mask_mod(plan: TilePlan) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, from their places in the kernel's order.

    Plain integers, not tensors: the compiler makes them symbols, so one kernel serves every grid and radius. Ten of
    them at least: the C++ backend replaces its own symbol "ks<how many>" as text, and a number of one digit would
    be found inside the names of these.
    """
    prefix = plan.prefix + _PAST_SPECIAL
    image = plan.prefix_blocks * KEY_BLOCK + _PAST_SPECIAL
    columns = plan.tiles[1] + _PAST_SPECIAL
    height = plan.layout.grid[0] + _PAST_SPECIAL
    width = plan.layout.grid[1] + _PAST_SPECIAL
    inside = plan.spec.radius**2 + _PAST_SPECIAL
    step_y, step_x = query_tile_size(plan.upright)
    # Where the second key tile of a query tile lies from the first.
    second_y = step_y - KEY_TILE_SIDE + _PAST_SPECIAL
    second_x = step_x - KEY_TILE_SIDE + _PAST_SPECIAL

    def place(token: Tensor) -> tuple[Tensor, Tensor]:
        """(y, x) of a token in tile order."""
        tile, second = token // QUERY_BLOCK, token // KEY_BLOCK % 2
        row, col = tile // (columns - _PAST_SPECIAL), tile % (columns - _PAST_SPECIAL)
        y = row * step_y + second * (second_y - _PAST_SPECIAL) + token // KEY_TILE_SIDE % KEY_TILE_SIDE
        x = col * step_x + second * (second_x - _PAST_SPECIAL) + token % KEY_TILE_SIDE
        return y, x

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_y, query_x = place(query)
        key_y, key_x = place(key - (image - _PAST_SPECIAL))
        dy, dx = query_y - key_y, query_x - key_x
        window = (dy * dy + dx * dx < inside - _PAST_SPECIAL) & (key >= image - _PAST_SPECIAL)
        real = (key_y < height - _PAST_SPECIAL) & (key_x < width - _PAST_SPECIAL)
        return (key < prefix - _PAST_SPECIAL) | (window & real)

    return mask_mod


# ---- what the kernel reads ----


def _kernel_input(like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Zeros for the kernel, and the same memory as (B, heads, length, padded head size) to be filled.

    Batch and heads are one dimension to the kernel, or it would be compiled for every number of heads; and what it
    gets is no view, or it would be compiled for every shape of what is viewed.
    """
    batch, heads, _, head_dim = like.shape
    # Zeros, since a padded value takes part in the product with a weight of zero.
    given = like.new_zeros(batch * heads, 1, length, padded_head_dim(head_dim))
    return given, given.view(batch, heads, length, -1)


def _prefix_and_tiles(tokens: Tensor, plan: TilePlan, spatial_weight: Tensor | None) -> Tensor:
    """Keys or values as the kernel reads them: text, reference, pooled, padding to a whole block, image in tiles.

    Returns:
        (B * heads, 1, prefix blocks * 64 + query tiles * 128, padded head size), contiguous.
    """
    image = plan.layout.image_slice
    parts = [tokens[:, :, : image.start], tokens[:, :, image.stop :]]
    if spatial_weight is not None:
        parts.append(pool_tokens(tokens[:, :, image], plan.layout.grid, spatial_weight))
    start = plan.prefix_blocks * KEY_BLOCK
    given, filled = _kernel_input(tokens, start + plan.query_tiles * QUERY_BLOCK)
    head_dim, place = tokens.shape[-1], 0
    for part in parts:
        filled[:, :, place : place + part.shape[2], :head_dim] = part
        place += part.shape[2]
    copy_to_tiles(tokens[:, :, image], filled[:, :, start:, :head_dim], plan)
    return given
