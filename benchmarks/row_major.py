"""The published code's attention: FlexAttention over the row-major sequence in blocks of 128 x 128 tokens.

A baseline for measurements; its block lists are built analytically, because torch's own construction needs every
query-key pair in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from clear_core import ClearSpec, SequenceLayout

BLOCK = 128


def block_map(layout: SequenceLayout, spec: ClearSpec) -> Tensor:
    """bool (query blocks, key blocks): blocks with at least one visible pair. No reference or pooled tokens."""
    if layout.reference or spec.pools:
        raise ValueError("the row-major order is measured without reference and pooled tokens.")
    height, width = layout.grid
    blocks = -(-layout.length // BLOCK)
    seen = torch.zeros(blocks, blocks, dtype=torch.bool)
    text_blocks = -(-layout.text // BLOCK)
    seen[:text_blocks] = True
    seen[:, :text_blocks] = True
    reaches = [math.isqrt(spec.inside - 1 - dy * dy) for dy in range(spec.radius)]
    for block in range(layout.text // BLOCK, blocks):
        token = max(block * BLOCK - layout.text, 0)
        stop = min((block + 1) * BLOCK - layout.text, layout.image)
        while token < stop:
            y, left = divmod(token, width)
            right = min(left + stop - token, width) - 1
            for key_y in range(max(0, y - spec.radius + 1), min(height, y + spec.radius)):
                reach = reaches[abs(key_y - y)]
                start = layout.text + key_y * width
                first, last = start + max(left - reach, 0), start + min(right + reach, width - 1)
                seen[block, first // BLOCK : last // BLOCK + 1] = True
            token += right - left + 1
    return seen


def visited_pairs(layout: SequenceLayout, spec: ClearSpec) -> int:
    """Query-key pairs inside the visited blocks, text queries included."""
    return int(block_map(layout, spec).sum()) * BLOCK**2


def block_mask(layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> BlockMask:
    """The published code's mask; blocks of nothing but text keys or text queries need no mask inside."""
    text, width, inside = layout.text, layout.grid[1], spec.inside

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_token, key_token = query - text, key - text
        dy = query_token // width - key_token // width
        dx = query_token % width - key_token % width
        return (query < text) | (key < text) | (dy * dy + dx * dx < inside)

    seen = block_map(layout, spec)
    full = torch.zeros_like(seen)
    full[: text // BLOCK] = True
    full[:, : text // BLOCK] = True
    if layout.length % BLOCK:
        full[:, -1] = False
    lists: list[Tensor] = []
    for wanted in (seen & ~full, full):
        order = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        lists += [wanted.sum(dim=1, dtype=torch.int32), order.to(torch.int32)]
    count, index, full_count, full_index = (one[None, None].to(device) for one in lists)
    return BlockMask.from_kv_blocks(
        count,
        index,
        full_count,
        full_index,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        compute_q_blocks=False,
        seq_lengths=(layout.length, layout.length),
    )


def row_major_attention(
    layout: SequenceLayout, spec: ClearSpec, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """CLEAR attention of (B, heads, L, D) at the plain scale, compiled for this size as in the published code."""
    mask = block_mask(layout, spec, device)
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)
