"""Steps of the Triton kernel over keys: online softmax of one block of queries, for the prefix and for key tiles.

Imported only if Triton is installed. Annotations are objects here: Triton 3.1's interpreter cannot read strings.
"""

# Arguments of a Triton kernel: a struct cannot be passed, compile-time ones are upper case by custom, none has a type
# that Python's annotations could say.
# ruff: noqa: N803, N806, PLR0913
# pyright: basic, reportInvalidTypeForm=false

import triton
import triton.language as tl

# Masks of a walk over tiles.
NOTHING = tl.constexpr(0)
CIRCLE = tl.constexpr(1)
CIRCLE_AND_BORDER = tl.constexpr(2)


@triton.jit
def row_offsets(token, stride):
    """Offsets in elements of tokens' rows, int64: a product of two 32-bit integers overflows."""
    return token.to(tl.int64) * stride.to(tl.int64)


@triton.jit
def load_rows(rows, dims, real, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """(rows, padded head size) from pointers to the rows; zeros if a row is not real or past the head size."""
    pointers = rows[:, None] + dims[None, :]
    if dims.shape[0] == HEAD_DIM:
        if MASKED:
            return tl.load(pointers, mask=real[:, None], other=0.0)
        else:
            return tl.load(pointers)
    else:
        if MASKED:
            return tl.load(pointers, mask=real[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        else:
            return tl.load(pointers, mask=(dims < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def score(q, k):
    """Query-key products, (queries, keys)."""
    # In float32 without tf32, which would leave 10 bits of the result.
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def accumulate(acc, row_sum, row_max, scores, v, scale):
    """One block of keys into the running softmax; ``scale`` is positive and in units of log2, as ``row_max`` is."""
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
    weight = tl.exp2(scores * scale - new_max[:, None])
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, row_sum, new_max


@triton.jit
def walk_prefix(
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
    stop,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys ``first`` to ``stop`` of the prefix, which every query sees."""
    lane = tl.arange(0, BLOCK_N)
    for start in range(first, stop, BLOCK_N):
        key = start + lane
        keys = load_rows(k + row_offsets(key, k_step), dims, key < stop, HEAD_DIM, MASKED)
        values = load_rows(v + row_offsets(key, v_step), dims, key < stop, HEAD_DIM, MASKED)
        scores = score(q, keys)
        if MASKED:
            scores = tl.where((key < stop)[None, :], scores, float("-inf"))
        acc, row_sum, row_max = accumulate(acc, row_sum, row_max, scores, values, scale)
    return acc, row_sum, row_max


@triton.jit
def walk_tiles(
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
    tiles,
    first,
    stop,
    query_y,
    query_x,
    text,
    height,
    width,
    inside,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIDE: tl.constexpr,
    DISTANCE: tl.constexpr,
    MASK: tl.constexpr,
):
    """Entries ``first`` to ``stop`` of a list of key tiles, each in as many steps as it has blocks of keys."""
    STEPS: tl.constexpr = SIDE * SIDE // BLOCK_N
    lane = tl.arange(0, BLOCK_N)
    lane_y = lane // SIDE
    lane_x = lane % SIDE
    k_lanes = k + row_offsets(lane_y * width + lane_x, k_step)
    v_lanes = v + row_offsets(lane_y * width + lane_x, v_step)
    # (qy - ky)**2 + (qx - kx)**2 < inside, multiplied out and the key's own squares on the right: two fused products
    # for each pair instead of four operations.
    to_y = lane_y.to(DISTANCE)
    to_x = lane_x.to(DISTANCE)
    lane_limit = inside.to(DISTANCE) - (to_y * to_y + to_x * to_x)
    for step in range(first * STEPS, stop * STEPS):
        packed = tl.load(tiles + step // STEPS)
        key_y = (packed >> 16) * SIDE + step % STEPS * (BLOCK_N // SIDE)
        key_x = (packed & 0xFFFF) * SIDE
        token = text + key_y * width + key_x
        real = (lane_y < height - key_y) & (lane_x < width - key_x)
        keys = load_rows(k_lanes + row_offsets(token, k_step), dims, real, HEAD_DIM, MASK == CIRCLE_AND_BORDER)
        values = load_rows(v_lanes + row_offsets(token, v_step), dims, real, HEAD_DIM, MASK == CIRCLE_AND_BORDER)
        scores = score(q, keys)
        if MASK != NOTHING:
            from_y = (query_y - key_y).to(DISTANCE)
            from_x = (query_x - key_x).to(DISTANCE)
            square = from_y * from_y + from_x * from_x
            limit = lane_limit
            if MASK == CIRCLE_AND_BORDER:
                # A square without the key's own part is never below minus that part.
                limit = tl.where(real, limit, -2 * SIDE * SIDE)
            distance = square[:, None] + (-2 * from_y)[:, None] * to_y[None, :] + (-2 * from_x)[:, None] * to_x[None, :]
            scores = tl.where(distance < limit[None, :], scores, float("-inf"))
        acc, row_sum, row_max = accumulate(acc, row_sum, row_max, scores, values, scale)
    return acc, row_sum, row_max
