"""Windows by torch's FlexAttention over 2-D tiles: a compiled, fused block-sparse kernel (CUDA by Triton, CPU by C++).

Image queries run in the kernel, in the tile order of :mod:`..tiling.order`; text and reference queries are a dense
attention call of their own. Permuting into tile order happens here, so the model's tokens stay row-major.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call import Attended, AttentionCall, CallKind, head_groups, padded_head_dim
from ...first_use import first_use, is_running
from ...outside_image import attend_outside_image
from ...tiling.order import KEY_BLOCK, QUERY_BLOCK
from ...tiling.plan import TilePlan, tile_plan
from ..base import KernelError, no_triton, too_old
from .block_mask import PAST_SPECIAL, block_mask, first_image_key, key_block, key_count
from .copies import copy_from_tiles, copy_to_tiles
from .overview import with_overview

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# The attention scale in the kernel is a multiple of one over this: more digits than float32 has.
_SCALE_STEPS = 2**30

# Row offsets inside the kernel are 32-bit.
_MOST_ELEMENTS = 2**31 - 1


class FlexBackend:
    """FlexAttention's compiled kernel; nothing runs unfused instead.

    ``clear_attention`` keeps it out of the compilation of the model around it: the first window would be compiled in.
    """

    name = "flex"
    title = "FlexAttention"
    instead = "FlexAttention"
    takes_bias = False
    compiled = True

    def unavailable(self, kind: CallKind) -> str | None:
        if kind.device.type not in ("cuda", "cpu"):
            return f"FlexAttention has no kernel for {kind.device.type} devices that is used here"
        if kind.dtype not in DTYPES:
            return f"FlexAttention's kernel does not take {kind.dtype}"
        if kind.spec.overview and kind.needs_grad:
            return "FlexAttention's kernel has no gradient with an overview of what is outside the windows"
        if kind.device.type == "cpu":
            if kind.needs_grad:
                return "FlexAttention has no gradient on a CPU"
            if kind.return_lse:
                return "FlexAttention returns no log-sum-exp on a CPU"
            return None
        if kind.dtype == torch.float32:
            return "FlexAttention's kernel in float32 needs more shared memory than most cards have"
        return too_old(kind.device) or no_triton()

    def preferred(self, kind: CallKind) -> str | None:
        return f"FlexAttention's compiled kernel works on {kind.device}." if kind.device.type == "cuda" else None

    def run(self, call: AttentionCall) -> Attended:
        """A chunk is a group of heads; by default all of them."""
        result: Attended | None = None
        if call.query_rows:
            plan = tile_plan(call.layout, call.spec, call.q.device, call.query_rows)
            mask = block_mask(plan, call.needs_grad)
            for heads in _head_groups(call, plan):
                tiled = _run_kernel(call.of_heads(heads), plan, mask)
                # Made once the kernel's inputs are gone: they are three times as large.
                result = result or call.empty_result()
                _copy_image(tiled, call.of_heads(heads), result.of_heads(heads), plan)
                del tiled
                call.on_chunk()
        result = result or call.empty_result()
        attend_outside_image(call, result)
        return result


FLEX = FlexBackend()


def _head_groups(call: AttentionCall, plan: TilePlan) -> list[slice]:
    """Slices of the heads, each as large as the memory limit and the kernel's offsets allow."""
    batch, heads = call.q.shape[:2]
    queries, keys = plan.queries.tokens, key_count(plan, key_block(call.needs_grad))
    head_dim = padded_head_dim(call.q.shape[-1])
    most = _MOST_ELEMENTS // (batch * keys * head_dim)
    if call.chunk_bytes is not None:
        most = min(most, call.chunk_bytes // (2 * batch * (queries + keys) * head_dim * call.q.element_size()))
    # A kernel for a single head and item would be compiled apart.
    return head_groups(heads, most, least=2 if batch == 1 else 1)


def _run_kernel(call: AttentionCall, plan: TilePlan, mask: Any) -> Attended:
    """The image rows in tile order: output (B * heads, 1, queries, head size), both padded, and log-sum-exp."""
    q = call.q
    queries, filled = _kernel_input(q, plan.queries.tokens)
    copy_to_tiles(q[:, :, call.image_queries], filled, plan.queries)
    keys, values = (_prefix_and_tiles(call, one, plan) for one in (call.k, call.v))
    options, score_mod = _kernel_options(q.device), _score_mod(call, plan)
    threads = torch.get_num_threads() if q.device.type == "cpu" else 0
    kind = _KernelKind(threads, q.dtype, queries.shape[-1], call.return_lse, call.needs_grad, plan.spec.overview)
    compiled = _compiled(kind)
    try:
        with _told(q.device, kind), _guards_in_python():
            found = compiled(queries, keys, values, mask, score_mod, options, call.return_lse)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Compilers raise errors of many kinds, most of them private.
        raise KernelError(FLEX.name, error) from error
    return Attended(*found) if call.return_lse else Attended(found, None)


def _copy_image(tiled: Attended, call: AttentionCall, result: Attended, plan: TilePlan) -> None:
    """Writes the image rows of ``result``."""
    batch, heads, _, head_dim = call.q.shape
    out = tiled.out.view(batch, heads, plan.queries.tokens, -1)
    copy_from_tiles(out[..., :head_dim], result.out[:, :, call.image_queries], plan.queries)
    if tiled.lse is not None and result.lse is not None:
        lse = tiled.lse.view(batch, heads, plan.queries.tokens, 1)
        copy_from_tiles(lse, result.lse[:, :, call.image_queries, None], plan.queries)


# ---- the kernel ----


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    score_mod: Callable[..., Tensor],
    kernel_options: dict[str, int] | None,
    return_lse: bool,
) -> Any:
    """Output, or output and log-sum-exp."""
    from torch.nn.attention import flex_attention as flex

    if not torch.compiler.is_compiling():
        raise RuntimeError("FlexAttention was about to run without its compiled kernel; is torch.compile disabled?")
    options: dict[str, Any] = {
        "score_mod": score_mod,
        "block_mask": mask,
        "scale": 1.0,
        "kernel_options": kernel_options,
    }
    attention: Callable[..., Any] = flex.flex_attention
    if not return_lse:
        return attention(q, k, v, **options)
    if hasattr(flex, "AuxRequest"):
        out, aux = attention(q, k, v, return_aux=flex.AuxRequest(lse=True), **options)
        return out, aux.lse
    # torch before 2.9.
    return attention(q, k, v, return_lse=True, **options)


class _KernelKind(NamedTuple):
    """What a kernel is compiled for; all else may change from call to call.

    Attributes:
        threads: Of a CPU; 0 on a card.
        dtype, head_dim: Of its inputs, padded.
        return_lse, needs_grad: As in the call.
        overview: Whether pooled keys are an overview.
    """

    threads: int
    dtype: torch.dtype
    head_dim: int
    return_lse: bool
    needs_grad: bool
    overview: bool = False


@lru_cache(maxsize=64)
def _function(kind: _KernelKind) -> FunctionType:
    """``_fused`` as a function with code of its own.

    torch counts what it compiles of one code and ends with an error after eight. Number types, head sizes, the
    log-sum-exp and gradients of several models would be more than that.
    """
    *told, overview = kind
    name = "_".join(["_fused", *(str(one).removeprefix("torch.") for one in told), *["overview"] * overview])
    return FunctionType(_fused.__code__.replace(co_name=name), _fused.__globals__, name)


@lru_cache(maxsize=64)
def _compiled(kind: _KernelKind) -> Callable[..., Any]:
    """The compiled kernel.

    The C++ kernel has room for the threads it was compiled for and no more, and torch 2.11 leaves their number out of
    the key of its cache on disk: found there by a process with more threads, it would write past its buffers.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] | None = None
    if kind.threads:
        options = {"cpp.threads": kind.threads}
    # fullgraph: past the recompile limit torch raises instead of running unfused with every score in memory.
    return torch.compile(_function(kind), dynamic=True, fullgraph=True, options=options)


# Filled once it is found that a kernel may run here of which torch does not say that it is compiled.
_untold: list[bool] = []


@contextmanager
def _told(device: torch.device, kind: _KernelKind) -> Generator[None]:
    """The self-test compiles, and is told of; ``torch._dynamo.reset()``, which other nodes call, drops the kernel."""
    if _untold or is_running() or _is_compiled(kind):
        yield
        return
    work = f'Compiling the attention kernel "{FLEX.name}"'
    with first_use(work, device, kind.dtype, f"head size {kind.head_dim}"):
        yield
    if not _is_compiled(kind):
        # Every call would be told of.
        _untold.append(True)


def _is_compiled(kind: _KernelKind) -> bool:
    """Whether torch holds some compiled form of the kernel; also where it cannot be asked."""
    from torch._dynamo import eval_frame  # pyright: ignore[reportPrivateUsage]

    entries = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    return entries is None or bool(entries(_function(kind).__code__))


def _guards_in_python() -> AbstractContextManager[object]:
    """torch 2.8 and 2.9 compile guards on sizes with a C++ compiler, which Windows lacks (pytorch issue 157458)."""
    from torch._dynamo import config

    if getattr(config, "enable_cpp_symbolic_shape_guards", False):
        return config.patch(enable_cpp_symbolic_shape_guards=False)
    return nullcontext()


@lru_cache(maxsize=16)
def _kernel_options(device: torch.device) -> dict[str, int] | None:
    """Block sizes that divide the tiles', and few enough pipeline stages for the card's shared memory."""
    if device.type != "cuda":
        return None
    # Lengths are multiples of the blocks. Without fwd_ the backward kernel, whose blocks are others, would take it too.
    options: dict[str, int] = {"BLOCK_M": QUERY_BLOCK, "BLOCK_N": KEY_BLOCK, "fwd_IS_DIVISIBLE": True}
    # 99 KB of shared memory on compute capability 8.6, 8.9 and 12.x; 163 KB and more on 8.0, 9.0 and 10.0.
    if torch.version.hip is None and torch.cuda.get_device_capability(device) not in ((8, 0), (9, 0), (10, 0)):
        options["num_stages"] = 2
    return options


def _score_mod(call: AttentionCall, plan: TilePlan) -> Callable[..., Tensor]:
    """The attention scale as an integer: a Python float would be specialised by Dynamo, one kernel per scale."""
    steps = round(call.scale * _SCALE_STEPS) + PAST_SPECIAL

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score * (steps - PAST_SPECIAL) * (1 / _SCALE_STEPS)

    return with_overview(score_mod, plan, key_block(call.needs_grad)) if plan.spec.overview else score_mod


# ---- its inputs ----


def _kernel_input(like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Memory for the kernel, and the same as (B, heads, length, head size) to be filled; all of it must be.

    Batch and heads are one dimension of the kernel's input, or it would be compiled for every number of heads; and the
    input is no view, or it would be compiled for every shape of the viewed tensor.
    """
    batch, heads, _, head_dim = like.shape
    shape = (batch * heads, 1, length, padded_head_dim(head_dim))
    # Padding is zero, since a padded value takes part in the product with a weight of zero.
    given = like.new_empty(shape) if shape[-1] == head_dim else like.new_zeros(shape)
    return given, given.view(batch, heads, length, -1)[..., :head_dim]


def _prefix_and_tiles(call: AttentionCall, tokens: Tensor, plan: TilePlan) -> Tensor:
    """Keys or values as the kernel reads them: text, reference, pooled, padding to a whole block, image in tiles.

    Returns:
        (B * heads, 1, padded prefix + key tiles * 64, padded head size), contiguous.
    """
    block = key_block(call.needs_grad)
    start, parts = first_image_key(plan, block), call.prefix_parts(tokens)
    given, filled = _kernel_input(tokens, key_count(plan, block))
    if plan.prefix < start:
        filled[:, :, plan.prefix : start].zero_()
    first = 0
    for part in parts:
        filled[:, :, first : first + part.shape[2]] = part
        first += part.shape[2]
    copy_to_tiles(tokens[:, :, call.image_keys], filled[:, :, start:], plan.keys)
    return given
