"""Windows without a compiler: the keys of each query tile are gathered, then dense attention runs on them.

Exact on any device and dtype that torch's attention knows; works through the tiles in chunks of limited memory.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bias import ImageBias
from ..budget import queries_at_once
from ..call import Attended, AttentionCall, CallKind, head_groups
from ..fused import SCORE_BYTES
from ..lse import attend_with_lse, lse_is_free
from ..merge import merge
from ..outside_image import attend_outside_image
from ..tiling.classes import query_tile, tile_slack
from ..tiling.gathered import GatheredClass, GatheredKeys, gathered_plan

# From here on pooled keys are attended to separately and merged. Measured on a CPU: as fast with 256 of them, a fifth
# to a third faster with 1024. Each of the two parts is rounded to the dtype, so not if nothing is won.
MANY_POOLED = 512


class GatherBackend:
    """Exact everywhere; what others hand over to."""

    name = "gather"
    title = "Attention by gathered tiles"
    takes_bias = True
    compiled = False

    def unavailable(self, kind: CallKind) -> str | None:
        return None

    def preferred(self, kind: CallKind) -> str | None:
        if kind.device.type == "cpu":
            return "On a CPU gathered tiles are faster than a compiled kernel."
        # A compiled kernel is faster on CUDA devices.
        return None if kind.device.type == "cuda" else f"On {kind.device.type} devices gathered tiles are used."

    def run(self, call: AttentionCall) -> Attended:
        """A chunk is a few query tiles of one class; its keys, values, queries and results fit the memory limit of the
        call, down to a single tile.
        """
        result = call.empty_result()
        if call.query_rows:
            # With a bias every item has masks of its own, and tiles take the batch's dimension.
            for index in range(call.q.shape[0]) if call.bias is not None else [None]:
                one, rows = call, result
                if index is not None:
                    one, rows = call.of_item(index), result.of_item(index)
                for heads in head_groups(one.q.shape[1], _heads_at_once(one)):
                    _ImageRun(one.of_heads(heads), rows.of_heads(heads)).run()
        attend_outside_image(call, result)
        return result


def _heads_at_once(call: AttentionCall) -> int:
    """Number of heads whose scores of a single tile fit the memory limit, where attention keeps scores."""
    if call.fused:
        return call.q.shape[1]
    height, width = (side + tile_slack(side) for side in query_tile(call.q.device, call.spec.radius))
    reach = 2 * (call.spec.radius - 1)
    keys = min(call.layout.image, (height + reach) * (width + reach)) + call.layout.length - call.layout.image
    return call.chunk_limit // (SCORE_BYTES * call.q.shape[0] * height * width * keys)


class _ImageRun:
    """Image queries of one call: writes their rows of its result.

    Attributes:
        chunk_limit: Memory in bytes for one chunk.
        pooled: Pooled keys and values, or None. If they are ``separate``, text and reference may be among them.
        separate: Whether all queries attend to ``pooled`` in unmasked calls, merged with the windows' result.
        lse: Log-sum-exp of the windows, if it is needed.
        shared: Number of text and reference tokens that are gathered for every tile.
        gathered_pooled: Number of pooled keys that are gathered for every tile.
    """

    def __init__(self, call: AttentionCall, result: Attended) -> None:
        self.call = call
        self.result = result
        self.chunk_limit = call.chunk_limit
        image = call.image_keys
        self.shared = call.layout.length - call.layout.image
        self.pooled = call.pooled()
        # If the log-sum-exp is free, the keys that every query sees are one unmasked call without a copy for each tile.
        self.separate = (
            self.pooled is not None
            and self.pooled[0].shape[2] >= MANY_POOLED
            and lse_is_free(call.q, call.needs_grad)
            and (call.bias is None or call.bias.image is ImageBias.NONE)
        )
        if self.separate and self.pooled is not None and call.bias is None:
            keys, values = (
                torch.cat([one[:, :, : image.start], one[:, :, image.stop :], pooled], dim=2)
                for one, pooled in zip((call.k, call.v), self.pooled, strict=True)
            )
            self.pooled = keys, values
            self.shared = 0
        self.gathered_pooled = 0 if self.pooled is None or self.separate else self.pooled[0].shape[2]
        self.lse = result.lse
        if self.separate and self.lse is None:
            self.lse = call.q.new_empty(call.q.shape[:3], dtype=torch.float32)

    def run(self) -> None:
        """All tiles of all classes."""
        call = self.call
        keys = GatheredKeys(
            spec=replace(call.spec, down_factor=1),
            device=call.q.device,
            query_rows=call.query_rows,
            shared=self.shared > 0,
            ahead=self.shared + self.gathered_pooled if call.bias is None else None,
        )
        for tiles in gathered_plan(call.layout, keys).classes:
            self._attend_class(tiles)
        if self.separate and self.pooled is not None:
            self._merge_seen_by_all(*self.pooled)

    def _attend_class(self, tiles: GatheredClass) -> None:
        """The tiles of one class in chunks of about one size: few shapes, for libraries that plan for each."""
        number, queries = tiles.queries.shape
        most = max(1, self.chunk_limit // self._tile_bytes(queries, tiles.keys.shape[1] + self.gathered_pooled))
        step = -(-number // -(-number // most))
        mask = tiles.mask
        for start in range(0, number, step):
            self._attend_chunk(tiles.queries[start : start + step], tiles.keys[start : start + step], mask)

    def _attend_chunk(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> None:
        """Some tiles of one class, halved as often as memory asks for.

        Args:
            queries: (tiles, queries) positions in q.
            keys: (tiles, keys) positions in k.
            mask: Which keys each query sees, or None.
        """
        try:
            self._write_chunk(queries, keys, mask)
        except torch.OutOfMemoryError:
            if len(queries) == 1:
                raise
        else:
            self.call.on_chunk()
            return
        half = len(queries) // 2
        for part in (slice(half), slice(half, None)):
            self._attend_chunk(queries[part], keys[part], mask)

    def _write_chunk(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> None:
        call = self.call
        if call.bias is not None:
            window_keys = keys[:, self.shared :].long()
            mask = call.bias.tiles(queries, window_keys, mask, self.gathered_pooled, call.q.dtype)
        rows = queries.flatten()
        out, lse = self._attend_tiles(rows, keys.flatten(), len(queries), mask)
        self.result.out.index_copy_(2, rows, out)
        if self.lse is not None and lse is not None:
            self.lse.index_copy_(2, rows, lse)

    def _merge_seen_by_all(self, keys: Tensor, values: Tensor) -> None:
        """Adds the keys that every query sees to the result of the windows, many queries at once."""
        call, out, lse = self.call, self.result.out, self.lse
        assert lse is not None
        image = call.image_queries
        # Results of both parts and of the whole in float32.
        per_query = call.q.shape[0] * call.q.shape[1] * call.q.shape[3] * 12
        pairs = call.q.shape[0] * call.q.shape[1] * keys.shape[2]
        step = min(
            max(1, self.chunk_limit // per_query), queries_at_once(call.q.device, pairs, self.chunk_limit, call.fused)
        )
        for start in range(image.start, image.stop, step):
            rows = slice(start, min(start + step, image.stop))
            seen_by_all = attend_with_lse(
                call.q[:, :, rows], keys, values, scale=call.scale, needs_grad=call.needs_grad
            )
            out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *seen_by_all)
            call.on_chunk()

    def _attend_tiles(self, queries: Tensor, keys: Tensor, tiles: int, mask: Tensor | None) -> Attended:
        """One chunk: (B, heads, queries, D) and, if it is needed or free, (B, heads, queries).

        Attention takes four dimensions. Tiles with one bool mask for all stand beside the heads, and the copies are
        contiguous; tiles with a mask of their own, (tiles, heads|1, queries, keys), take the batch's dimension, which
        is one item, so that the mask need not be written out for every head.

        Args:
            queries: (tiles * queries,) positions in q.
            keys: (tiles * keys,) positions in k.
        """
        call = self.call
        own_masks = mask is not None and mask.ndim == 4
        q = call.q.index_select(2, queries)
        k, v = (one.index_select(2, keys).unflatten(2, (tiles, -1)) for one in (call.k, call.v))
        if self.pooled is not None and not self.separate:
            k, v = (
                torch.cat([pooled[:, :, None].expand(-1, -1, tiles, -1, -1), one], dim=3)
                for one, pooled in zip((k, v), self.pooled, strict=True)
            )
        arguments = [
            one[0].transpose(0, 1) if own_masks else one.flatten(1, 2) for one in (q.unflatten(2, (tiles, -1)), k, v)
        ]
        lse = None
        if self.lse is not None:
            out, lse = attend_with_lse(*arguments, scale=call.scale, mask=mask, needs_grad=call.needs_grad)
            lse = (lse.transpose(0, 1) if own_masks else lse).reshape(q.shape[:3])
        else:
            out = F.scaled_dot_product_attention(*arguments, attn_mask=mask, scale=call.scale)
        out = (out.transpose(0, 1) if own_masks else out).reshape(q.shape)
        return Attended(out, lse)

    def _tile_bytes(self, queries: int, keys: int) -> int:
        """Memory that one tile of a chunk takes while it is worked on."""
        q, bias = self.call.q, self.call.bias
        batch, heads, _, head_dim = q.shape
        per_token = batch * heads * head_dim * q.element_size()
        # Gathered keys and values, and on a CPU the packed copies that attention makes of both; queries and results.
        copies = 2 if q.device.type == "cpu" else 1
        held = per_token * (2 * copies * keys + 3 * queries) + 8 * (keys + queries)
        if self.lse is not None and q.device.type != "cpu":
            # The scores, from which the log-sum-exp is made.
            held += batch * heads * 8 * queries * keys
        if not self.call.fused:
            held += batch * heads * SCORE_BYTES * queries * keys
        if bias is not None:
            # The mask's elements, what they are made from, and the copy that a kernel may want.
            held += 3 * q.element_size() * bias.masks * queries * keys
        return held


GATHER = GatherBackend()
