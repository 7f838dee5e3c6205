"""Windows by a Triton kernel over 2-D tiles that leaves tokens where they are: no permutation, no torch.compile.

Image queries run in the kernel of :mod:`.kernel`; text and reference queries are a dense attention call of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Attended, AttentionCall, CallKind, head_groups
from ...outside_image import attend_outside_image
from ...tiling.plan import tile_plan
from ..base import KernelError, no_triton, too_old
from .block_shapes import shapes_for
from .launch import KernelTensors, interpreted, launch, launch_pooling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend:
    """The kernel of this folder. Forward only."""

    name = "triton"
    title = "The Triton kernel"
    instead = "the Triton kernel"
    takes_bias = False
    compiled = True

    def unavailable(self, kind: CallKind) -> str | None:
        device = kind.device
        if device.type not in ("cuda", "xpu") and not (device.type == "cpu" and interpreted()):
            return f"Triton has no compiler for {device.type} devices"
        if kind.dtype not in DTYPES:
            return f"the Triton kernel does not take {kind.dtype}"
        if kind.needs_grad:
            return "the Triton kernel has no gradient"
        return (too_old(device) if device.type == "cuda" else None) or no_triton()

    def preferred(self, kind: CallKind) -> str | None:
        """On NVIDIA cards it was measured ahead of FlexAttention (benchmarks/README.md, "The first GPU")."""
        if kind.device.type != "cuda" or torch.version.hip is not None:
            return None
        # In float32 there are no tensor cores; gathered tiles are no slower then.
        if kind.needs_grad or kind.dtype == torch.float32:
            return None
        return f"The Triton kernel works on {kind.device}."

    def run(self, call: AttentionCall) -> Attended:
        """A chunk is a group of heads. Without pooled keys the kernel takes no memory of its own: one chunk is all."""
        result = call.empty_result()
        if call.query_rows:
            # Always written: a second kernel without it would cost more than these elements do.
            lse = result.out.new_empty(call.q.shape[:3], dtype=torch.float32) if result.lse is None else result.lse
            for heads in _head_groups(call):
                _attend_image(call.of_heads(heads), result.out[:, heads], lse[:, heads])
                call.on_chunk()
        attend_outside_image(call, result)
        return result


TRITON = TritonBackend()


def _head_groups(call: AttentionCall) -> list[slice]:
    """Slices of the heads whose copied keys and values fit the memory limit."""
    batch, heads, _, head_dim = call.k.shape
    per_head = 2 * batch * _copied_keys(call) * head_dim * call.k.element_size()
    return head_groups(heads, heads if call.chunk_bytes is None or per_head == 0 else call.chunk_bytes // per_head)


def _copied_keys(call: AttentionCall) -> int:
    """Keys that every image query sees, if they are brought together; 0 if they lie together already."""
    text, reference, pooled = _seen_by_all(call)
    return text + reference + pooled if reference or pooled else 0


def _seen_by_all(call: AttentionCall) -> tuple[int, int, int]:
    """Text, reference and pooled keys: every image query sees them."""
    rows, columns = call.spec.cells(call.layout.grid)
    return call.layout.text, call.layout.reference, rows * columns


def _attend_image(call: AttentionCall, out: Tensor, lse: Tensor) -> None:
    """Writes the image rows of ``out`` and ``lse``."""
    q, scale = call.q, call.scale
    if scale <= 0:
        # The kernel looks for the largest score before it scales.
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    q, k, v = (one if one.stride(-1) == 1 else one.contiguous() for one in (q, call.k, call.v))
    try:
        tensors = KernelTensors(q, k, v, _prefix(call, k), _prefix(call, v), out, lse)
        shapes = shapes_for(q.device, q.dtype, q.shape[-1])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Compilers raise errors of many kinds, most of them private.
        raise KernelError(TRITON.name, error) from error
    for shape in shapes:
        plan = tile_plan(call.layout, call.spec, q.device, call.query_rows, shape.halves)
        try:
            launch(shape, tensors, plan, scale)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfResources" and shape != shapes[-1]:
                continue
            raise KernelError(TRITON.name, error) from error


def _prefix(call: AttentionCall, tokens: Tensor) -> Tensor:
    """Keys or values that every image query sees: text, reference, pooled. A view if it is text alone."""
    text, reference, pooled = _seen_by_all(call)
    if not _copied_keys(call):
        return tokens[:, :, :text]
    image = call.image_keys
    batch, heads, _, head_dim = tokens.shape
    together = tokens.new_empty(batch, heads, text + reference + pooled, head_dim)
    together[:, :, :text] = tokens[:, :, : image.start]
    together[:, :, text : text + reference] = tokens[:, :, image.stop :]
    if call.spatial_weight is not None:
        cells = together[:, :, text + reference :]
        launch_pooling(tokens[:, :, image], cells, call.layout.grid, call.spatial_weight)
    return together
