"""Text and reference queries, which see the whole sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .budget import queries_at_once
from .call import Attended, AttentionCall, head_groups
from .lse import attend_with_lse


def attend_outside_image(call: AttentionCall, result: Attended) -> None:
    """Writes the rows of text and reference queries into ``result``, chunk by chunk.

    Kept out of the windowed launch: these rows attend to every key and would dominate its run time.
    """
    q, image, length = call.q, call.image_queries, call.q.shape[2]
    if image.start == 0 and image.stop == length:
        return
    for heads in head_groups(q.shape[1], _heads_at_once(call)):
        step = _queries_at_once(call, heads.stop - heads.start)
        for first, stop in ((0, image.start), (image.stop, length)):
            for start in range(first, stop, step):
                _attend_rows(call, result, heads, slice(start, min(start + step, stop)))
                call.on_chunk()


def _attend_rows(call: AttentionCall, result: Attended, heads: slice, rows: slice) -> None:
    q, k, v = call.q[:, heads, rows], call.k[:, heads], call.v[:, heads]
    mask = None if call.bias is None else call.bias.rows(rows, q.dtype)
    if mask is not None and mask.shape[1] > 1:
        mask = mask[:, heads]
    if result.lse is None:
        result.out[:, heads, rows] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale)
    else:
        result.out[:, heads, rows], result.lse[:, heads, rows] = attend_with_lse(
            q, k, v, scale=call.scale, mask=mask, needs_grad=call.needs_grad
        )


def _heads_at_once(call: AttentionCall) -> int:
    """Number of heads of one attention call within the memory limit.

    A CPU's kernel for half precision packs all keys and values of the call into a copy. On other devices nothing is
    copied, and few heads would leave a card idle.
    """
    k = call.k
    if k.device.type != "cpu" or k.dtype == torch.float32:
        return k.shape[1]
    return call.chunk_limit // (2 * k.shape[0] * k.shape[2] * k.shape[3] * k.element_size())


def _queries_at_once(call: AttentionCall, heads: int) -> int:
    """Number of queries of one attention call of so many heads."""
    q, keys = call.q, call.layout.length
    step = queries_at_once(q.device, q.shape[0] * heads * keys, call.chunk_limit)
    if call.bias is None:
        return step
    # The kernel may want a copy besides the one in q's dtype.
    return max(1, min(step, call.chunk_limit // (2 * q.element_size() * call.bias.masks * keys)))
