"""The Triton kernel's walk over the pooled keys of an overview, which weigh by their tokens outside the window.

Imported only if Triton is installed. Annotations are objects here: Triton 3.1's interpreter cannot read strings.
"""

# As in walk.py.
# ruff: noqa: N803, PLR0913
# pyright: basic, reportInvalidTypeForm=false

import triton
import triton.language as tl

from .walk import load_rows, row_offsets, score


@triton.jit
def walk_overview(
    acc,
    row_sum,
    row_max,
    q,
    k,
    v,
    k_step,
    v_step,
    dims,
    scale,
    query_y,
    query_x,
    starts,
    bases,
    whole_logs,
    logs,
    sizes,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ADDED_FIRST: tl.constexpr,
):
    """All pooled keys. Only blocks with cells in rows that some window reaches look pairs up.

    Args:
        k, v: Pooled keys and values of all cells, row by row.
        starts, bases, whole_logs, logs: Of an :class:`.overview_table.OverviewTable`, logs to the base of 2.
        sizes: int32, the number of cells, of their rows, and of those in a row; down factor and radius; last places of
            rows and columns, and places in a row of ``logs``.
        ADDED_FIRST: Whether products are added to what the table says, not the other way round.
    """
    cells = tl.load(sizes)
    rows = tl.load(sizes + 1)
    columns = tl.load(sizes + 2)
    down = tl.load(sizes + 3)
    radius = tl.load(sizes + 4)
    last_y = tl.load(sizes + 5)
    last_x = tl.load(sizes + 6)
    places = tl.load(sizes + 7)
    # Rows of cells that hold a row which some query's window reaches.
    first = tl.maximum(tl.min(query_y, 0) - radius + 1, 0) // down
    stop = tl.minimum((tl.max(query_y, 0) + radius - 1) // down + 1, rows)
    whole = cells // BLOCK_N
    blocks = tl.cdiv(cells, BLOCK_N)
    near = tl.minimum(first * columns // BLOCK_N, whole)
    near_stop = tl.minimum(tl.cdiv(stop * columns, BLOCK_N), blocks)
    acc, row_sum, row_max = walk_cells(
        acc,
        row_sum,
        row_max,
        q,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        0,
        near + tl.maximum(whole - near_stop, 0),
        near,
        near_stop - near,
        cells,
        query_y,
        query_x,
        starts,
        bases,
        whole_logs,
        last_y,
        last_x,
        places,
        BLOCK_N,
        HEAD_DIM,
        ADDED_FIRST,
        True,
    )
    # A last block that is cut by the end is looked up too, wherever it lies.
    return walk_cells(
        acc,
        row_sum,
        row_max,
        q,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        near,
        near_stop - near + tl.where(near_stop <= whole, blocks - whole, 0),
        near_stop,
        whole - near_stop,
        cells,
        query_y,
        query_x,
        starts,
        bases,
        logs,
        last_y,
        last_x,
        places,
        BLOCK_N,
        HEAD_DIM,
        ADDED_FIRST,
        False,
    )


@triton.jit
def walk_cells(
    acc,
    row_sum,
    row_max,
    q,
    k,
    v,
    k_step,
    v_step,
    dims,
    scale,
    first,
    blocks,
    skipped_from,
    skipped,
    cells,
    query_y,
    query_x,
    starts,
    bases,
    logs,
    last_y,
    last_x,
    places,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ADDED_FIRST: tl.constexpr,
    FAR: tl.constexpr,
):
    """``blocks`` blocks of an overview's pooled keys from number ``first`` on, of which some are skipped.

    Args:
        skipped_from, skipped: The first block that is skipped, and the number of those.
        cells: All pooled keys.
        starts, bases, logs: As of :class:`.overview_table.OverviewTable`, in units of log2; if ``FAR``, ``logs`` is
            its ``whole_logs``.
        last_y, last_x, places: Last places, and places in a row of ``logs``.
        FAR: Whether all cells are whole blocks that lie outside the windows of all queries.
    """
    lane = tl.arange(0, BLOCK_N)
    for step in range(0, blocks):
        block = first + step
        block += tl.where(block >= skipped_from, skipped, 0)
        cell = block * BLOCK_N + lane
        real = cell < cells
        keys = load_rows(k + row_offsets(cell, k_step), dims, real, HEAD_DIM, not FAR)
        values = load_rows(v + row_offsets(cell, v_step), dims, real, HEAD_DIM, not FAR)
        if FAR:
            scores = score(q, keys) * scale + tl.load(logs + cell)[None, :]
        else:
            start_y = tl.load(starts + cell, mask=real, other=0)
            start_x = tl.load(starts + cells + cell, mask=real, other=0)
            base = tl.load(bases + cell, mask=real, other=0)
            place_y = tl.minimum(tl.maximum(start_y[None, :] - query_y[:, None], 0), last_y)
            place_x = tl.minimum(tl.maximum(start_x[None, :] - query_x[:, None], 0), last_x)
            added = tl.load(logs + (place_y * places + place_x + base[None, :]))
            if ADDED_FIRST:
                scores = tl.dot(q, tl.trans(keys), added / scale, input_precision="ieee") * scale
            else:
                scores = score(q, keys) * scale + added
            scores = tl.where(real[None, :], scores, float("-inf"))
        acc, row_sum, row_max = accumulate_scaled(acc, row_sum, row_max, scores, values)
    return acc, row_sum, row_max


@triton.jit
def accumulate_scaled(acc, row_sum, row_max, scores, v):
    """As :func:`.walk.accumulate`, of scores in units of log2, which may be -inf."""
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    weight = tl.exp2(scores - new_max[:, None])
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, row_sum, new_max
