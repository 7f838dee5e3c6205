"""The Triton kernel: forward CLEAR attention of image queries over 2-D tiles of row-major tokens.

A program takes one block of queries (a 16 x 8 or 8 x 16 tile, or half of one) of one head and walks the keys that
any of them sees: the prefix, tiles inside every circle, tiles cut by a circle, tiles cut by the border as well. Key
(y, x) is read at ``text + y * width + x``, query (y, x) at ``text + (y - first_row) * width + x``, so nothing is
permuted or copied. Every size and stride is a run-time argument: a kernel is compiled once for each dtype, head size
and block shape, with and without an overview.

Imported only if Triton is installed. Annotations are objects here: Triton 3.1's interpreter cannot read strings.
"""

# As in walk.py.
# pyright: basic, reportInvalidTypeForm=false

import triton
import triton.language as tl

from .overview import walk_overview
from .walk import CIRCLE, CIRCLE_AND_BORDER, NOTHING, load_rows, row_offsets, walk_prefix, walk_tiles

# Initial row maximum (m_i); finite, so that a row whose first blocks are masked entirely has no inf - inf in it.
LOWEST = tl.constexpr(-1.0e38)

LOG2_E = tl.constexpr(1.4426950408889634)

SIZES = (
    *("heads", "text", "prefix", "height", "width", "first_row", "query_rows", "tile_columns"),
    *("second_y", "second_x", "partial_width", "full_width", "inside"),
)
_STRIDED = ("q", "k", "v", "prefix_k", "prefix_v", "out")
STRIDES = (*(f"{name}_{axis}" for name in _STRIDED for axis in ("batch", "head", "token")), "lse_batch", "lse_head")


@triton.jit(do_not_specialize=["lse", *SIZES, *STRIDES])
def clear_kernel(
    q,
    k,
    v,
    prefix_k,
    prefix_v,
    out,
    lse,
    partial,
    circle_count,
    partial_count,
    full,
    full_count,
    cell_starts,
    cell_bases,
    cell_logs,
    table,
    overview,
    scale,
    heads: tl.int32,
    text: tl.int32,
    prefix: tl.int32,
    height: tl.int32,
    width: tl.int32,
    first_row: tl.int32,
    query_rows: tl.int32,
    tile_columns: tl.int32,
    second_y: tl.int32,
    second_x: tl.int32,
    partial_width: tl.int32,
    full_width: tl.int32,
    inside: tl.int32,
    q_batch: tl.int64,
    q_head: tl.int64,
    q_token: tl.int64,
    k_batch: tl.int64,
    k_head: tl.int64,
    k_token: tl.int64,
    v_batch: tl.int64,
    v_head: tl.int64,
    v_token: tl.int64,
    prefix_k_batch: tl.int64,
    prefix_k_head: tl.int64,
    prefix_k_token: tl.int64,
    prefix_v_batch: tl.int64,
    prefix_v_head: tl.int64,
    prefix_v_token: tl.int64,
    out_batch: tl.int64,
    out_head: tl.int64,
    out_token: tl.int64,
    lse_batch: tl.int64,
    lse_head: tl.int64,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SIDE: tl.constexpr,
    UNIT: tl.constexpr,
    DISTANCE: tl.constexpr,
    ADDED_FIRST: tl.constexpr,
):
    """Writes the image rows of ``out`` and ``lse``. The grid is (query blocks, batch * heads).

    Args:
        q, out: First element of (B, heads, T + query_rows * width + R, D), the last dimension contiguous.
        k, v: First element of (B, heads, T + height * width + R, D), the last dimension contiguous.
        prefix_k, prefix_v: (B, heads, prefix, D), the keys that every image query sees.
        lse: (B, heads, T + query_rows * width + R) float32.
        partial, full: Key tiles of each program's queries, int32, row * 2**16 + column; in ``partial`` those that are
            inside the grid come first.
        circle_count, partial_count, full_count: (query blocks,) int32, the number of entries of ``partial`` that are
            inside the grid, of all its entries, and of the entries of ``full``.
        cell_starts, cell_bases, table, cell_logs: ``starts``, ``bases``, ``logs`` and ``whole_logs`` of an
            :class:`.overview_table.OverviewTable`, logs to the base of 2; None without an overview.
        overview: (9,) int32, see :func:`.overview.walk_overview`; None without an overview.
        scale: Factor on the products times log2(e), above 0.
        text: Tokens in front of the image.
        first_row, query_rows: The image rows of the queries.
        second_y, second_x: Offset of the second half of a query tile from the first, (SIDE, 0) or (0, SIDE).
        inside: Squared distances below it are seen.
        strides: Of all but ``lse`` in units of ``UNIT`` elements.
        SIDE: Side of a key tile; a query tile is two of them.
        UNIT: A common divisor of the strides; 16 lets rows be read in wide steps.
        DISTANCE: ``tl.float32`` if squared distances stay below 2**24 (it is faster), else ``tl.int32``.
        ADDED_FIRST: As of :func:`.overview.walk_overview`.
    """
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    q += (batch * q_batch + head * q_head) * UNIT
    k += (batch * k_batch + head * k_head) * UNIT
    v += (batch * v_batch + head * v_head) * UNIT
    prefix_k += (batch * prefix_k_batch + head * prefix_k_head) * UNIT
    prefix_v += (batch * prefix_v_batch + head * prefix_v_head) * UNIT
    out += (batch * out_batch + head * out_head) * UNIT
    lse += batch * lse_batch + head * lse_head

    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(0) * BLOCK_M // (2 * SIDE * SIDE)
    second = query // (SIDE * SIDE) % 2
    row = tile // tile_columns * (SIDE + second_y) + second * second_y + query // SIDE % SIDE
    query_x = tile % tile_columns * (SIDE + second_x) + second * second_x + query % SIDE
    query_real = (row < query_rows) & (query_x < width)
    query_token = text + row * width + query_x
    query_y = row + first_row
    dims = tl.arange(0, PADDED_DIM)
    queries = load_rows(q + row_offsets(query_token, q_token * UNIT), dims, query_real, HEAD_DIM, True)

    acc = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    row_max = tl.full([BLOCK_M], LOWEST, tl.float32)

    k_step = prefix_k_token * UNIT
    v_step = prefix_v_token * UNIT
    seen_by_all = prefix
    if overview is not None:
        seen_by_all = prefix - tl.load(overview)
    whole = seen_by_all // BLOCK_N * BLOCK_N
    acc, row_sum, row_max = walk_prefix(
        acc,
        row_sum,
        row_max,
        queries,
        prefix_k,
        prefix_v,
        k_step,
        v_step,
        dims,
        scale,
        0,
        whole,
        BLOCK_N,
        HEAD_DIM,
        False,
    )
    acc, row_sum, row_max = walk_prefix(
        acc,
        row_sum,
        row_max,
        queries,
        prefix_k,
        prefix_v,
        k_step,
        v_step,
        dims,
        scale,
        whole,
        seen_by_all,
        BLOCK_N,
        HEAD_DIM,
        True,
    )
    if overview is not None:
        acc, row_sum, row_max = walk_overview(
            acc,
            row_sum,
            row_max,
            queries,
            prefix_k + row_offsets(seen_by_all, k_step),
            prefix_v + row_offsets(seen_by_all, v_step),
            k_step,
            v_step,
            dims,
            scale,
            query_y,
            query_x,
            cell_starts,
            cell_bases,
            cell_logs,
            table,
            overview,
            BLOCK_N,
            HEAD_DIM,
            ADDED_FIRST,
        )
    k_step = k_token * UNIT
    v_step = v_token * UNIT
    block = tl.program_id(0)
    full += block.to(tl.int64) * full_width
    partial += block.to(tl.int64) * partial_width
    inside_grid = tl.load(circle_count + block)
    acc, row_sum, row_max = walk_tiles(
        acc,
        row_sum,
        row_max,
        queries,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        full,
        0,
        tl.load(full_count + block),
        query_y,
        query_x,
        text,
        height,
        width,
        inside,
        BLOCK_N,
        HEAD_DIM,
        SIDE,
        DISTANCE,
        NOTHING,
    )
    acc, row_sum, row_max = walk_tiles(
        acc,
        row_sum,
        row_max,
        queries,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        partial,
        0,
        inside_grid,
        query_y,
        query_x,
        text,
        height,
        width,
        inside,
        BLOCK_N,
        HEAD_DIM,
        SIDE,
        DISTANCE,
        CIRCLE,
    )
    acc, row_sum, row_max = walk_tiles(
        acc,
        row_sum,
        row_max,
        queries,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        partial,
        inside_grid,
        tl.load(partial_count + block),
        query_y,
        query_x,
        text,
        height,
        width,
        inside,
        BLOCK_N,
        HEAD_DIM,
        SIDE,
        DISTANCE,
        CIRCLE_AND_BORDER,
    )

    written = query_real[:, None] & (dims < HEAD_DIM)[None, :]
    out_rows = out + row_offsets(query_token, out_token * UNIT)
    tl.store(out_rows[:, None] + dims[None, :], (acc / row_sum[:, None]).to(out.dtype.element_ty), mask=written)
    tl.store(lse + query_token, (row_max + tl.log2(row_sum)) / LOG2_E, mask=query_real)
