"""Text and reference queries, which see the whole sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .budget import queries_at_once
from .call import Attended, AttentionCall, head_groups
from .fused import plain
from .lse import attend_with_lse


def attend_outside_image(call: AttentionCall, result: Attended) -> None:
    """Writes the rows of text and reference queries into ``result``, chunk by chunk.

    Kept out of the windowed launch: these rows attend to every key and would dominate its run time.
    """
    image, length = call.image_queries, call.q.shape[2]
    if image.start == 0 and image.stop == length:
        return
    for heads in head_groups(call.q.shape[1], _heads_at_once(call)):
        _attend_heads(call.of_heads(heads), result.of_heads(heads))


def _attend_heads(call: AttentionCall, result: Attended) -> None:
    q, k, v, image = call.q, plain(call.k), plain(call.v), call.image_queries
    step = _queries_at_once(call)
    for first, stop in ((0, image.start), (image.stop, q.shape[2])):
        for start in range(first, stop, step):
            rows = slice(start, min(start + step, stop))
            queries, mask = plain(q[:, :, rows]), None if call.bias is None else call.bias.rows(rows, q.dtype)
            if result.lse is None:
                result.out[:, :, rows] = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=call.scale)
            else:
                result.out[:, :, rows], result.lse[:, :, rows] = attend_with_lse(
                    queries, k, v, scale=call.scale, mask=mask, needs_grad=call.needs_grad
                )
            call.on_chunk()


def _heads_at_once(call: AttentionCall) -> int:
    """Number of heads of one attention call within the memory limit.

    A CPU's kernel for half precision packs all keys and values of the call into a copy. On other devices nothing is
    copied, and few heads would leave a card idle.
    """
    k = call.k
    if k.device.type != "cpu" or k.dtype == torch.float32:
        return k.shape[1]
    return call.chunk_limit // (2 * k.shape[0] * k.shape[2] * k.shape[3] * k.element_size())


def _queries_at_once(call: AttentionCall) -> int:
    """Number of queries of one attention call."""
    q, keys = call.q, call.layout.length
    step = queries_at_once(q.device, q.shape[0] * q.shape[1] * keys, call.chunk_limit, call.fused)
    if call.bias is None:
        return step
    # The kernel may want a copy besides the one in q's dtype.
    return max(1, min(step, call.chunk_limit // (2 * q.element_size() * call.bias.masks * keys)))
