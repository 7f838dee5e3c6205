"""Pooled keys and values by a Triton kernel: each token is read once. Its plain twin: ``pool_tokens``.

Imported only if Triton is installed. Annotations are objects here: Triton 3.1's interpreter cannot read strings.
"""

# As in walk.py.
# ruff: noqa: N803, PLR0913
# pyright: basic, reportInvalidTypeForm=false

import triton
import triton.language as tl

from .walk import load_rows, row_offsets

SIZES = ("heads", "height", "width", "columns", "cells", "down")
STRIDES = ("token_batch", "token_head", "token_step", "pooled_batch", "pooled_head", "pooled_step")


@triton.jit(do_not_specialize=["weight", *SIZES, *STRIDES])
def pool_kernel(
    tokens,
    pooled,
    weight,
    heads: tl.int32,
    height: tl.int32,
    width: tl.int32,
    columns: tl.int32,
    cells: tl.int32,
    down: tl.int32,
    token_batch: tl.int64,
    token_head: tl.int64,
    token_step: tl.int64,
    pooled_batch: tl.int64,
    pooled_head: tl.int64,
    pooled_step: tl.int64,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    CELLS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Writes the weighted sums over the cells of a grid. The launch grid is (blocks of cells, batch * heads).

    Args:
        tokens: First element of (B, heads, height * width, D), row-major, the last dimension contiguous.
        pooled: First element of (B, heads, cells, D), likewise.
        weight: (down, down) float32, contiguous.
        columns: Cells in a row.
        cells: Cells of the whole grid.
        strides: In units of ``UNIT`` elements.
        CELLS: Cells of a program.
        UNIT: A common divisor of the strides; 16 lets rows be read in wide steps.
    """
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    tokens += (batch * token_batch + head * token_head) * UNIT
    pooled += (batch * pooled_batch + head * pooled_head) * UNIT
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    real = cell < cells
    y = cell // columns * down
    x = cell % columns * down
    dims = tl.arange(0, PADDED_DIM)
    summed = tl.zeros([CELLS, PADDED_DIM], tl.float32)
    # Of each cell the weights that are there, and their magnitudes; of a whole cell, all.
    signed = tl.zeros([CELLS], tl.float32)
    magnitude = tl.zeros([CELLS], tl.float32)
    total = tl.sum(tl.zeros([1], tl.float32))
    total_magnitude = total
    for place in range(0, down * down):
        one = tl.load(weight + place)
        row = y + place // down
        column = x + place % down
        there = real & (row < height) & (column < width)
        rows = tokens + row_offsets(row * width + column, token_step * UNIT)
        summed += one * load_rows(rows, dims, there, HEAD_DIM, True).to(tl.float32)
        present = tl.where(there, one, 0.0)
        signed += present
        magnitude += tl.abs(present)
        total += one
        total_magnitude += tl.abs(one)
    # As border_gain of the plain twin: what is left of a cut cell weighs as much as a whole one, within a bound.
    bound = down * down * total_magnitude / magnitude
    gain = total / signed
    usual = (gain == gain) & (bound == bound)
    gain = tl.where(usual, tl.minimum(tl.maximum(gain, -bound), bound), 1.0)
    gain = tl.where(tl.abs(gain) < float("inf"), gain, 1.0)
    cut = (y + down > height) | (x + down > width)
    summed *= tl.where(cut, gain, 1.0)[:, None]
    rows = pooled + row_offsets(cell, pooled_step * UNIT)
    written = real[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(rows[:, None] + dims[None, :], summed.to(pooled.dtype.element_ty), mask=written)
