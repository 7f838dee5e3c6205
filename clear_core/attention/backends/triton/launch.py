"""Starting the Triton kernel: what it is told about tensors, sizes and tiles."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...tiling.plan import KEY_TILE_SIDE, QUERY_BLOCK, TilePlan, query_tile_size
from ..flex import padded_head_dim

# Squares of distances in a visited tile stay below 2**24, where float32 is exact, up to this radius.
FAR_RADIUS = 2**11

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class TileShape:
    """What the kernel is compiled for on a device.

    Attributes:
        block_m: Queries of a program, 128 (a whole query tile) or 64 (half of one).
        block_n: Keys of a step, 64 (a whole key tile) or a half or quarter of one.
        warps: Warps of a program.
        stages: Steps of keys that are in shared memory at once.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages"


def interpreted() -> bool:
    """Whether Triton was told to run kernels in its interpreter, which works on a CPU and is slow."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(
    shape: TileShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: TilePlan,
    scale: float,
) -> None:
    """Starts the kernel; tensors as :func:`.kernel.clear_kernel` takes them."""
    from .kernel import clear_kernel

    batch, heads, _, head_dim = q.shape
    named = {"q": q, "k": k, "v": v, "prefix_k": prefix_k, "prefix_v": prefix_v, "out": out}
    unit = stride_unit(*named.values())
    strides = {
        f"{name}_{axis}": step // unit
        for name, tensor in named.items()
        for axis, step in zip(("batch", "head", "token"), tensor.stride(), strict=False)
    }
    sizes = kernel_sizes(plan, heads)
    grid = (plan.query_tiles * (QUERY_BLOCK // shape.block_m), batch * heads)
    with _current_device(q.device):
        clear_kernel[grid](
            **named,
            lse=lse,
            **tile_lists(plan)._asdict(),
            scale=scale * _LOG2_E,
            **sizes,
            **strides,
            lse_batch=lse.stride(0),
            lse_head=lse.stride(1),
            UNIT=unit,
            **kernel_constants(shape, head_dim, sizes["inside"]),
        )


def kernel_sizes(plan: TilePlan, heads: int) -> dict[str, int]:
    """The kernel's sizes."""
    height, width = plan.layout.grid
    step_y, step_x = query_tile_size(plan.upright)
    lists = tile_lists(plan)
    # A larger square would overflow, and says no more than that everything is seen.
    inside = min(plan.spec.radius**2, (height - 1) ** 2 + (width - 1) ** 2 + 1)
    return {
        "heads": heads,
        "text": plan.layout.text,
        "prefix": plan.prefix,
        "height": height,
        "width": width,
        "tile_columns": plan.tiles[1],
        "second_y": step_y - KEY_TILE_SIDE,
        "second_x": step_x - KEY_TILE_SIDE,
        "partial_width": lists.partial.shape[1],
        "full_width": lists.full.shape[1],
        "inside": inside,
    }


def kernel_constants(shape: TileShape, head_dim: int, inside: int) -> dict[str, Any]:
    """What the kernel is compiled for, apart from the dtype and the stride's unit."""
    import triton.language as tl

    return {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": padded_head_dim(head_dim),
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "SIDE": KEY_TILE_SIDE,
        "DISTANCE": tl.float32 if inside <= FAR_RADIUS**2 else tl.int32,
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }


def stride_unit(*tensors: Tensor) -> int:
    """16 where batch, head and token strides are all multiples of it, else 1."""
    return 1 if any(step % 16 for one in tensors for step in one.stride()[:3]) else 16


class TileLists(NamedTuple):
    """Key tiles of every query tile as :func:`.kernel.clear_kernel` takes them, all int32."""

    partial: Tensor
    circle_count: Tensor
    partial_count: Tensor
    full: Tensor
    full_count: Tensor


@lru_cache(maxsize=2)
def tile_lists(plan: TilePlan) -> TileLists:
    """The plan's lists, places written as row * 2**16 + column, tiles cut by the border behind the others."""
    with torch.inference_mode(False):
        row, col = _row_and_column(plan.partial, plan)
        height, width = plan.layout.grid
        border = ((row + 1) * KEY_TILE_SIDE > height) | ((col + 1) * KEY_TILE_SIDE > width)
        unused = torch.arange(row.shape[1], device=row.device) >= plan.partial_count[:, None]
        # What is unused lies at the end, and stays there.
        order = (border | unused).to(torch.int8).argsort(dim=1, stable=True)
        circle_count = (~border & ~unused).sum(dim=1, dtype=torch.int32)
        partial = (row * 2**16 + col).gather(1, order)
        row, col = _row_and_column(plan.full, plan)
        return TileLists(partial, circle_count, plan.partial_count, row * 2**16 + col, plan.full_count)


def _row_and_column(tiles: Tensor, plan: TilePlan) -> tuple[Tensor, Tensor]:
    """(row, column) in key tiles of places in tile order."""
    tiles = tiles.to(torch.int32)
    query_tile, second = tiles // 2, tiles % 2
    row, col = query_tile // plan.tiles[1], query_tile % plan.tiles[1]
    return (row * 2 + second, col) if plan.upright else (row, col * 2 + second)


def _current_device(device: torch.device) -> AbstractContextManager[Any]:
    # Triton starts kernels on the current device, whatever device its tensors are on.
    return nullcontext() if device.type == "cpu" else getattr(torch, device.type).device(device)
