"""Windows by a Triton kernel over 2-D tiles that leaves tokens where they are: no permutation, no torch.compile.

Image queries run in the kernel of :mod:`.kernel`; text and reference queries are an ordinary attention call
of their own. Experimental: "auto" does not take it before a measurement on a GPU shows it exact and faster.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ....layout import SequenceLayout
from ....spec import ClearSpec
from ...outside_image import attend_outside_image, empty_output
from ...pool import pool_tokens
from ...tiling.plan import TilePlan, tile_plan
from .block_shapes import tile_shapes
from .launch import interpreted, launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Older cards have no bfloat16, and Triton no longer compiles for them.
OLDEST_CAPABILITY = (8, 0)


class TritonFailure(RuntimeError):
    """The kernel could not be compiled or run. The message is one line."""


def triton_unavailable_reason(device: torch.device, dtype: torch.dtype, needs_grad: bool) -> str | None:
    """Why the kernel cannot run, as the end of a sentence; None where it may. Nothing is compiled for the answer."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type not in ("cuda", "xpu") and not (device.type == "cpu" and interpreted()):
        return f"Triton has no compiler for {device.type} devices"
    if dtype not in DTYPES:
        return f"the Triton kernel does not take {dtype}"
    if needs_grad:
        return "the Triton kernel has no gradient"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            return f"Triton compiles for compute capability 8.0 and above, and {device} has {capability[0]}.{capability[1]}"
    return None


@torch.compiler.disable
def triton_attention(
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
    """CLEAR attention; arguments as in :func:`clear_core.clear_attention`, already checked. Forward only.

    A chunk is a group of heads; without pooled keys the kernel takes no memory of its own, and one chunk is all.

    Raises:
        TritonFailure: The kernel cannot be compiled or run.
    """
    plan = tile_plan(layout, spec, q.device)
    out = empty_output(q)
    # Always written: a second kernel without it would cost more than the numbers do.
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    for heads in _head_groups(k, plan, chunk_bytes):
        _attend_image(q[:, heads], k[:, heads], v[:, heads], out[:, heads], lse[:, heads], plan, spatial_weight, scale)
        if on_chunk is not None:
            on_chunk()
    attend_outside_image(
        q,
        k,
        v,
        out,
        lse if return_lse else None,
        layout=layout,
        scale=scale,
        chunk_bytes=chunk_bytes,
        on_chunk=on_chunk,
    )
    return (out, lse) if return_lse else out


def _head_groups(k: Tensor, plan: TilePlan, chunk_bytes: int | None) -> list[slice]:
    """Slices of the heads whose copied keys and values fit the budget."""
    batch, heads, _, head_dim = k.shape
    copied = 0 if plan.prefix == plan.layout.text else plan.prefix
    # Pooled apart and then beside text and reference, the last of them summed in float32.
    per_head = batch * copied * head_dim * (4 * k.element_size() + 4)
    most = heads if chunk_bytes is None or per_head == 0 else max(1, chunk_bytes // per_head)
    groups = -(-heads // most)
    bounds = [heads * i // groups for i in range(groups + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def _attend_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: TilePlan,
    spatial_weight: Tensor | None,
    scale: float,
) -> None:
    """Writes the image rows of ``out`` and ``lse``."""
    if scale <= 0:
        # The kernel looks for the largest score before it scales.
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    q, k, v = (one if one.stride(-1) == 1 else one.contiguous() for one in (q, k, v))
    prefix_k, prefix_v = (_prefix(one, plan, spatial_weight) for one in (k, v))
    shapes = tile_shapes(q.device, q.dtype, q.shape[-1])
    for shape in shapes:
        try:
            launch(shape, q, k, v, prefix_k, prefix_v, out, lse, plan, scale)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Compilers raise errors of many kinds, most of them private.
            if type(error).__name__ == "OutOfResources" and shape != shapes[-1]:
                continue
            line = (str(error).strip() or "no message").splitlines()[0]
            raise TritonFailure(f"{type(error).__name__}: {line}") from error


def _prefix(tokens: Tensor, plan: TilePlan, spatial_weight: Tensor | None) -> Tensor:
    """Keys or values that every image query sees: text, reference, pooled. A view where it is text alone."""
    image = plan.layout.image_slice
    if plan.prefix == image.start:
        return tokens[:, :, : image.start]
    parts = [tokens[:, :, : image.start], tokens[:, :, image.stop :]]
    if spatial_weight is not None:
        parts.append(pool_tokens(tokens[:, :, image], plan.layout.grid, spatial_weight))
    return torch.cat(parts, dim=2)
