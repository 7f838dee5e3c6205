"""Text and reference queries, which see the whole sequence."""

from __future__ import annotations

import torch.nn.functional as F

from .budget import queries_at_once
from .call import Attended, AttentionCall
from .lse import attend_with_lse


def attend_outside_image(call: AttentionCall, result: Attended) -> None:
    """Writes the rows of text and reference queries into ``result``, chunk by chunk.

    Kept out of the windowed launch: these rows attend to every key and would dominate its run time.
    """
    q, k, v, image, keys = call.q, call.k, call.v, call.image_queries, call.layout.length
    if image.start == 0 and image.stop == q.shape[2]:
        return
    step = queries_at_once(q.device, q.shape[0] * q.shape[1] * keys, call.chunk_limit)
    if call.bias is not None:
        # The kernel may want a copy besides the one in q's dtype.
        step = max(1, min(step, call.chunk_limit // (2 * q.element_size() * call.bias.masks * keys)))
    out, lse = result
    for first, stop in ((0, image.start), (image.stop, q.shape[2])):
        for start in range(first, stop, step):
            rows = slice(start, min(start + step, stop))
            mask = None if call.bias is None else call.bias.rows(rows, q.dtype)
            if lse is None:
                out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask, scale=call.scale)
            else:
                out[:, :, rows], lse[:, :, rows] = attend_with_lse(
                    q[:, :, rows], k, v, scale=call.scale, mask=mask, needs_grad=call.needs_grad
                )
            call.on_chunk()
