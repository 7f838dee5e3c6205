"""Block shapes for the Triton kernel: those that fit a device, the fastest first.

Measured once for each device, version of Triton, dtype and head size, and kept on disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch

from ....layout import SequenceLayout
from ....spec import ClearSpec
from ...call import padded_head_dim
from ...disk_cache import user_cache_folder
from ...first_use import first_use
from ...tiling.plan import tile_plan
from .autotune_cache import store_order, stored_order
from .launch import BlockShape, KernelTensors, interpreted, launch

logger = logging.getLogger(__name__)

# Raised when the kernel or its candidates change: what was measured before says nothing of them.
_KERNEL = 2

# Compute capabilities with 163 KB of shared memory and more; 8.6, 8.9 and 12.x have 99 KB.
LARGE_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0))

# One FLUX layer at 1K and radius 16: enough work for every multiprocessor, a few milliseconds.
_TRIAL = SequenceLayout(512, (64, 64)), ClearSpec(16), 24
_TRIAL_RUNS = 10


def candidate_shapes(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype, head_dim: int
) -> tuple[BlockShape, ...]:
    """Shapes to try, the likeliest first; the last needs the least. Chosen by compiled code and by an H100's times, see
    benchmarks/README.md.

    Args:
        device_type: "cuda" with a compute capability is NVIDIA, without one ROCm.
        capability: Compute capability of an NVIDIA device.
    """
    if dtype == torch.float32:
        # Without tensor cores, products are made in registers: larger blocks would spill.
        return BlockShape(64, 32, 16, 1), BlockShape(64, 16, 16, 1)
    if device_type == "cuda" and capability is not None:
        warps = 8 if padded_head_dim(head_dim) == 128 else 4
        if capability in LARGE_SHARED_MEMORY:
            large = BlockShape(64, 64, 4, 2), BlockShape(128, 64, warps, 3)
            # Halves are faster on an H100 at every radius and size; on 8.0 and 10.0 their steps are longer code.
            first = large if capability == (9, 0) else large[::-1]
            return *first, BlockShape(128, 32, warps, 3), BlockShape(64, 32, 4, 2)
        # Two programs with two stages of whole key tiles would not fit a multiprocessor.
        return (
            BlockShape(128, 64, warps, 2),
            BlockShape(64, 64, 4, 1),
            BlockShape(128, 32, warps, 2),
            BlockShape(64, 32, 4, 2),
        )
    if device_type == "cuda":
        # Compiled for gfx942 (MI300) none of these spills; for gfx1100 all do, the last one least.
        return BlockShape(128, 64, 4, 1), BlockShape(128, 32, 8, 1), BlockShape(64, 64, 4, 1), BlockShape(64, 32, 4, 1)
    return BlockShape(128, 64, 16, 2), BlockShape(64, 64, 8, 2), BlockShape(64, 32, 8, 1)


def shapes_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[BlockShape, ...]:
    """Shapes in the order in which to try them on a device; measured there at the first call."""
    return _shapes_for(device, dtype, padded_head_dim(head_dim))


@lru_cache(maxsize=32)
def _shapes_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[BlockShape, ...]:
    nvidia = device.type == "cuda" and torch.version.hip is None
    capability = torch.cuda.get_device_capability(device) if nvidia else None
    shapes = candidate_shapes(device.type, capability, dtype, head_dim)
    if device.type == "cpu" or interpreted():
        return shapes
    import triton

    name = getattr(torch, device.type).get_device_name(device)
    key = f"{name}, triton {triton.__version__}, {dtype}, head size {head_dim}, kernel {_KERNEL}"
    file = user_cache_folder() / "triton_block_shapes.json"
    if order := stored_order(file, key, shapes):
        return order
    with first_use('Timing block shapes of the attention kernel "triton"', device, dtype, f"head size {head_dim}"):
        return measured_order(file, key, shapes, partial(_seconds, device, dtype, head_dim))


def measured_order(
    file: Path, key: str, shapes: tuple[BlockShape, ...], seconds: Callable[[BlockShape], float]
) -> tuple[BlockShape, ...]:
    """The shapes that run, fastest first, written to ``file`` under ``key``.

    If none runs or memory is short, nothing is written and all are returned as given: the call that follows reports
    the error.
    """
    times: dict[BlockShape, float] = {}
    for shape in shapes:
        try:
            times[shape] = seconds(shape)
        except torch.OutOfMemoryError:
            return shapes
        except Exception as error:
            # Compilers raise errors of many kinds; a shape that does not fit is left out.
            logger.debug("CLEAR attention: %s is left out (%s).", shape, error)
    if not times:
        return shapes
    order = tuple(sorted(times, key=times.__getitem__))
    store_order(file, key, order)
    return order


def _seconds(device: torch.device, dtype: torch.dtype, head_dim: int, shape: BlockShape) -> float:
    """Time of one layer."""
    layout, spec, heads = _TRIAL
    synchronize = getattr(torch, device.type).synchronize
    # A generator of its own, so that the user's next picture keeps its noise.
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, out = torch.randn(
        4, 1, heads, layout.length, head_dim, generator=generator, device=device, dtype=dtype
    ).unbind()
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    text = slice(0, layout.text)
    tensors = KernelTensors(q, k, v, k[:, :, text], v[:, :, text], out, lse)
    run = partial(launch, shape, tensors, tile_plan(layout, spec, device, halves=shape.halves), head_dim**-0.5)
    best = float("inf")
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(_TRIAL_RUNS):
            run()
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / _TRIAL_RUNS)
    return best
