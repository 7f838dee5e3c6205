"""The Triton kernel: forward CLEAR attention of image queries over 2-D tiles of row-major tokens.

A program takes one block of queries (a 16 x 8 or 8 x 16 tile, or half of one) of one head and walks the keys that
any of them sees: those that every query sees, tiles seen whole, tiles cut by a circle, tiles cut by the border as
well. Token (y, x) is read at ``text + y * width + x`` where it lies, so nothing is permuted or copied. Every size and
stride is a run-time argument: a kernel is compiled once for each dtype, head size and block shape.

Imported only where Triton is installed. Annotations are objects here: Triton 3.1's interpreter cannot read strings.
"""

import triton
import triton.language as tl

# In front of every score; finite, so that a row whose first blocks are masked whole has no inf - inf in it.
LOWEST = tl.constexpr(-1.0e38)

LOG2_E = tl.constexpr(1.4426950408889634)

# What a walk over tiles has to mask.
NOTHING = tl.constexpr(0)
CIRCLE = tl.constexpr(1)
CIRCLE_AND_BORDER = tl.constexpr(2)

SIZES = (
    "heads",
    "text",
    "prefix",
    "height",
    "width",
    "tile_columns",
    "second_y",
    "second_x",
    "partial_width",
    "full_width",
    "inside",
)
STRIDES = (
    "q_batch",
    "q_head",
    "q_token",
    "k_batch",
    "k_head",
    "k_token",
    "v_batch",
    "v_head",
    "v_token",
    "prefix_k_batch",
    "prefix_k_head",
    "prefix_k_token",
    "prefix_v_batch",
    "prefix_v_head",
    "prefix_v_token",
    "out_batch",
    "out_head",
    "out_token",
    "lse_batch",
    "lse_head",
)


@triton.jit
def row_offsets(token, stride):
    """Numbers between a tensor's start and its tokens' rows, int64: a product of two 32-bit integers overflows."""
    return token.to(tl.int64) * stride.to(tl.int64)


@triton.jit
def load_rows(rows, dims, real, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """(rows, padded head size) from pointers to the rows; zeros where a row is not real or past the head size."""
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
    # In float32 without tf32, whose 10 bits would be the answer's.
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def accumulate(acc, total, top, scores, v, scale):
    """One block of keys into the running softmax; ``scale`` is positive and in units of log2, as ``top`` is."""
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weight = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total, new_top


@triton.jit
def walk_prefix(
    acc,
    total,
    top,
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
    """Keys ``first`` to ``stop`` of those that every query sees."""
    lane = tl.arange(0, BLOCK_N)
    for start in range(first, stop, BLOCK_N):
        key = start + lane
        keys = load_rows(k + row_offsets(key, k_step), dims, key < stop, HEAD_DIM, MASKED)
        values = load_rows(v + row_offsets(key, v_step), dims, key < stop, HEAD_DIM, MASKED)
        scores = score(q, keys)
        if MASKED:
            scores = tl.where((key < stop)[None, :], scores, float("-inf"))
        acc, total, top = accumulate(acc, total, top, scores, values, scale)
    return acc, total, top


@triton.jit
def walk_tiles(
    acc,
    total,
    top,
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
        acc, total, top = accumulate(acc, total, top, scores, values, scale)
    return acc, total, top


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
    scale,
    heads: tl.int32,
    text: tl.int32,
    prefix: tl.int32,
    height: tl.int32,
    width: tl.int32,
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
):
    """Writes the image rows of ``out`` and ``lse``. The grid is (query blocks, batch * heads).

    Args:
        q, k, v, out: First number of (B, heads, T + N + R, D), their last dimension contiguous.
        prefix_k, prefix_v: (B, heads, prefix, D), what every image query sees.
        lse: (B, heads, T + N + R) float32.
        partial, full: Key tiles of each query tile, int32, row * 2**16 + column; in ``partial`` those that are
            inside the grid come first.
        circle_count, partial_count, full_count: (query tiles,) int32, how many of ``partial`` are inside the grid,
            how many there are, and as many of ``full``.
        scale: Factor on the products times log2(e), above 0.
        text: Tokens in front of the image.
        second_y, second_x: Where the second half of a query tile lies from the first, (SIDE, 0) or (0, SIDE).
        inside: Squared distances below it are seen.
        strides: Of all but ``lse`` in units of ``UNIT`` numbers.
        SIDE: Side of a key tile; a query tile is two of them.
        UNIT: What the strides are multiples of; 16 lets rows be read in wide steps.
        DISTANCE: ``tl.float32`` where squared distances stay below 2**24 (it is faster), else ``tl.int32``.
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
    query_y = tile // tile_columns * (SIDE + second_y) + second * second_y + query // SIDE % SIDE
    query_x = tile % tile_columns * (SIDE + second_x) + second * second_x + query % SIDE
    query_real = (query_y < height) & (query_x < width)
    query_token = text + query_y * width + query_x
    dims = tl.arange(0, PADDED_DIM)
    queries = load_rows(q + row_offsets(query_token, q_token * UNIT), dims, query_real, HEAD_DIM, True)

    acc = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], LOWEST, tl.float32)

    k_step = prefix_k_token * UNIT
    v_step = prefix_v_token * UNIT
    whole = prefix // BLOCK_N * BLOCK_N
    acc, total, top = walk_prefix(
        acc, total, top, queries, prefix_k, prefix_v, k_step, v_step, dims, scale, 0, whole, BLOCK_N, HEAD_DIM, False
    )
    acc, total, top = walk_prefix(
        acc,
        total,
        top,
        queries,
        prefix_k,
        prefix_v,
        k_step,
        v_step,
        dims,
        scale,
        whole,
        prefix,
        BLOCK_N,
        HEAD_DIM,
        True,
    )
    k_step = k_token * UNIT
    v_step = v_token * UNIT
    full += tile.to(tl.int64) * full_width
    partial += tile.to(tl.int64) * partial_width
    inside_grid = tl.load(circle_count + tile)
    acc, total, top = walk_tiles(
        acc,
        total,
        top,
        queries,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        full,
        0,
        tl.load(full_count + tile),
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
    acc, total, top = walk_tiles(
        acc,
        total,
        top,
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
    acc, total, top = walk_tiles(
        acc,
        total,
        top,
        queries,
        k,
        v,
        k_step,
        v_step,
        dims,
        scale,
        partial,
        inside_grid,
        tl.load(partial_count + tile),
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
    tl.store(out_rows[:, None] + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=written)
    tl.store(lse + query_token, (top + tl.log2(total)) / LOG2_E, mask=query_real)
