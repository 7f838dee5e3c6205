"""Starting the Triton kernel: its arguments, from tensors, sizes and tiles."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....environment import variable
from ...call import padded_head_dim
from ...overview_table import overview_table
from ...tiling.order import KEY_TILE_SIDE, QUERY_BLOCK, query_tile_size
from ...tiling.plan import TilePlan

# Cells that a program of the pooling kernel sums.
_POOLED_CELLS = 16

# Squares of distances in a visited tile stay below 2**24, where float32 is exact, up to this radius.
FAR_RADIUS = 2**11

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class BlockShape:
    """Block sizes and pipelining that the kernel is compiled for (Triton's config).

    Attributes:
        block_m: Queries of a program, 128 (a whole query tile) or 64 (half of one, with its own list of key tiles).
        block_n: Keys of a step, 64 (a whole key tile) or a half or quarter of one.
        warps: Warps of a program (num_warps).
        stages: Steps of keys that are in shared memory at once (num_stages).
    """

    block_m: int
    block_n: int
    warps: int
    stages: int

    @property
    def halves(self) -> bool:
        """Whether a program takes half a query tile."""
        return self.block_m < QUERY_BLOCK

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages"


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which works on a CPU and is slow."""
    return variable("TRITON_INTERPRET") == "1"


class KernelTensors(NamedTuple):
    """The tensors of :func:`.kernel.clear_kernel`, all but the tile lists."""

    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    out: Tensor
    lse: Tensor


def launch(shape: BlockShape, tensors: KernelTensors, plan: TilePlan, scale: float) -> None:
    """Starts the kernel.

    Args:
        plan: With halves exactly if the shape's.
        scale: Factor on the query-key products, above 0.
    """
    from .kernel import clear_kernel

    q, lse = tensors.q, tensors.lse
    batch, heads, _, head_dim = q.shape
    unit = stride_unit(*tensors[:-1])
    strides = {
        f"{name}_{axis}": step // unit
        for name, tensor in zip(tensors._fields[:-1], tensors[:-1], strict=True)
        for axis, step in zip(("batch", "head", "token"), tensor.stride()[:3], strict=True)
    }
    sizes = kernel_sizes(plan, heads)
    grid = (plan.partial.shape[0], batch * heads)
    arguments: dict[str, Any] = {
        **tensors._asdict(),
        **tile_lists(plan)._asdict(),
        **overview_lists(plan)._asdict(),
        **sizes,
        **strides,
        "lse_batch": lse.stride(0),
        "lse_head": lse.stride(1),
        "scale": scale * _LOG2_E,
        "UNIT": unit,
        **kernel_constants(shape, head_dim, sizes["inside"]),
    }
    with _current_device(q.device):
        clear_kernel[grid](**arguments)


def launch_pooling(tokens: Tensor, pooled: Tensor, grid: tuple[int, int], weight: Tensor) -> None:
    """Starts the pooling kernel.

    Args:
        tokens: (B, heads, h * w, D) keys or values of the image, the last dimension contiguous.
        pooled: (B, heads, cells, D), written; the last dimension contiguous.
        grid: (h, w) in tokens.
        weight: (d, d), any dtype and device.
    """
    from .pooling import pool_kernel

    weight = weight.to(tokens.device, torch.float32).contiguous()
    batch, heads, _, head_dim = tokens.shape
    cells, down = pooled.shape[2], weight.shape[0]
    unit = stride_unit(tokens, pooled)
    strides = {
        f"{name}_{axis}": step // unit
        for name, tensor in (("token", tokens), ("pooled", pooled))
        for axis, step in zip(("batch", "head", "step"), tensor.stride()[:3], strict=True)
    }
    with _current_device(tokens.device):
        pool_kernel[-(-cells // _POOLED_CELLS), batch * heads](
            tokens=tokens,
            pooled=pooled,
            weight=weight,
            heads=heads,
            height=grid[0],
            width=grid[1],
            columns=-(-grid[1] // down),
            cells=cells,
            down=down,
            **strides,
            HEAD_DIM=head_dim,
            PADDED_DIM=padded_head_dim(head_dim),
            CELLS=_POOLED_CELLS,
            UNIT=unit,
            num_warps=4,  # pyright: ignore[reportCallIssue] - one of the compiler's options
        )


def kernel_sizes(plan: TilePlan, heads: int) -> dict[str, int]:
    """The kernel's sizes, by the names of its arguments."""
    height, width = plan.layout.grid
    step_y, step_x = query_tile_size(plan.queries.upright)
    lists = tile_lists(plan)
    return {
        "heads": heads,
        "text": plan.layout.text,
        "prefix": plan.prefix,
        "height": height,
        "width": width,
        "first_row": plan.query_rows.start,
        "query_rows": len(plan.query_rows),
        "tile_columns": plan.queries.tiles[1],
        "second_y": step_y - KEY_TILE_SIDE,
        "second_x": step_x - KEY_TILE_SIDE,
        "partial_width": lists.partial.shape[1],
        "full_width": lists.full.shape[1],
        # A larger square would overflow without showing more of the grid.
        "inside": min(plan.spec.inside, (height - 1) ** 2 + (width - 1) ** 2 + 1),
    }


def kernel_constants(shape: BlockShape, head_dim: int, inside: int) -> dict[str, Any]:
    """The kernel's compile-time arguments, apart from the stride's unit."""
    import triton.language as tl

    return {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": padded_head_dim(head_dim),
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "SIDE": KEY_TILE_SIDE,
        "DISTANCE": tl.float32 if inside <= FAR_RADIUS**2 else tl.int32,
        # Without a second stage Triton would take all scores of an overview into the order in which it reads the
        # table: a step would be twice as long. With one, the table's elements would crowd the registers.
        "ADDED_FIRST": shape.stages == 1,
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }


def stride_unit(*tensors: Tensor) -> int:
    """16 if batch, head and token strides are all multiples of it, else 1."""
    return 1 if any(step % 16 for one in tensors for step in one.stride()[:3]) else 16


class TileLists(NamedTuple):
    """Key tiles of every block of queries as :func:`.kernel.clear_kernel` takes them, all int32."""

    partial: Tensor
    circle_count: Tensor
    partial_count: Tensor
    full: Tensor
    full_count: Tensor


# As many as one model may take turns with.
@lru_cache(maxsize=4)
def tile_lists(plan: TilePlan) -> TileLists:
    """The plan's lists, key tiles written as row * 2**16 + column, tiles cut by the border behind the others."""
    with torch.inference_mode(False):
        row, col = plan.keys.row_and_column(plan.partial)
        height, width = plan.layout.grid
        border = ((row + 1) * KEY_TILE_SIDE > height) | ((col + 1) * KEY_TILE_SIDE > width)
        unused = torch.arange(row.shape[1], device=row.device) >= plan.partial_count[:, None]
        # Unused entries lie at the end, and stay there.
        order = (border | unused).to(torch.int8).argsort(dim=1, stable=True)
        circle_count = (~border & ~unused).sum(dim=1, dtype=torch.int32)
        partial = (row * 2**16 + col).gather(1, order)
        row, col = plan.keys.row_and_column(plan.full)
        return TileLists(partial, circle_count, plan.partial_count, row * 2**16 + col, plan.full_count)


class OverviewLists(NamedTuple):
    """What :func:`.kernel.clear_kernel` takes for an overview; all None without one."""

    cell_starts: Tensor | None = None
    cell_bases: Tensor | None = None
    cell_logs: Tensor | None = None
    table: Tensor | None = None
    overview: Tensor | None = None


@lru_cache(maxsize=4)
def overview_lists(plan: TilePlan) -> OverviewLists:
    """The plan's table of an overview, logs to the base of 2, and its sizes."""
    spec, grid, device = plan.spec, plan.layout.grid, plan.partial.device
    if not spec.overview:
        return OverviewLists()
    with torch.inference_mode(False):
        table = overview_table(grid, spec, device)
        rows, columns = spec.cells(grid)
        sizes = [rows * columns, rows, columns, spec.down_factor, spec.radius, *table.last, table.logs.shape[1]]
        return OverviewLists(
            table.starts,
            table.bases,
            table.whole_logs * _LOG2_E,
            table.logs * _LOG2_E,
            torch.tensor(sizes, dtype=torch.int32).to(device),
        )


def _current_device(device: torch.device) -> AbstractContextManager[Any]:
    # Triton starts kernels on the current device, whatever device its tensors are on.
    return nullcontext() if device.type == "cpu" else getattr(torch, device.type).device(device)
