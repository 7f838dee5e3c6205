"""Windows without a compiler: the keys of each query tile are gathered, then dense attention runs on them.

Exact on any device and dtype that torch's attention knows; works through the tiles in chunks of limited memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bias import ImageBias
from ..budget import queries_at_once
from ..call import Attended, AttentionCall, CallKind, head_groups
from ..fused import SCORE_BYTES, plain
from ..lse import attend_with_lse, lse_is_free
from ..merge import merge
from ..outside_image import attend_outside_image
from ..overview_merge import merge_outside_of
from ..tiling.classes import query_tile, tile_slack
from ..tiling.gathered import GatheredClass, GatheredKeys, gathered_plan
from ..workers import OnChunk, run_pieces, workers_of

# From here on pooled keys are attended to separately and merged. Measured on a CPU: as fast with 256 of them, a fifth
# to a third faster with 1024. Each of the two parts is rounded to the dtype, so not if nothing is won.
MANY_POOLED = 512

# Copies of some heads' queries, keys and values are held all along, up to so many times the memory limit of a chunk.
COPIES = 4

# Groups of heads for each of a CPU's threads: a thread that other programs slow down gets fewer of them.
PIECES = 2


class GatherBackend:
    """Exact everywhere; what others hand over to."""

    name = "gather"
    title = "Attention by gathered tiles"
    instead = "gathered tiles"
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
        workers = workers_of(call.q.device, call.needs_grad)
        groups = head_groups(call.q.shape[1], -(-call.q.shape[1] // (PIECES * workers)) if workers > 1 else 2**31)

        def piece(heads: slice, on_chunk: OnChunk) -> None:
            own = replace(call.of_heads(heads), on_chunk=on_chunk, chunk_bytes=call.chunk_limit // workers)
            _run_heads(own, result.of_heads(heads))

        run_pieces([partial(piece, heads) for heads in groups], call.on_chunk)
        return result


def _run_heads(call: AttentionCall, result: Attended) -> None:
    if call.query_rows:
        # With a bias every item has masks of its own.
        for index in range(call.q.shape[0]) if call.bias is not None else [None]:
            one, rows = call, result
            if index is not None:
                one, rows = call.of_item(index), result.of_item(index)
            for heads in head_groups(one.q.shape[1], _heads_at_once(one)):
                _ImageRun(one.of_heads(heads), rows.of_heads(heads)).run()
    attend_outside_image(call, result)


def _heads_at_once(call: AttentionCall) -> int:
    """Number of heads whose copies, and whose scores of a single tile where attention keeps scores, fit the limits."""
    q, layout = call.q, call.layout
    # Keys, values, and queries, in whose place the result comes.
    copies = q.shape[0] * (2 * layout.length + layout.image) * q.shape[3] * q.element_size()
    most = COPIES * call.chunk_limit // copies
    if call.fused:
        return most
    height, width = (side + tile_slack(side) for side in query_tile(q.device, call.spec.radius))
    reach = 2 * (call.spec.radius - 1)
    keys = min(layout.image, (height + reach) * (width + reach)) + layout.length - layout.image
    return min(most, call.chunk_limit // (SCORE_BYTES * q.shape[0] * height * width * keys))


class _Rows(NamedTuple):
    """Rows of a call's image queries in the plan's order; B * heads are the heads.

    Attributes:
        queries: (queries, heads, D).
        out: (queries, heads, D), where the result is written: over the queries, or beside them.
        lse: (queries, heads) float32, or None.
        keys_and_values: (keys, 2, heads, D), all of the call's.
    """

    queries: Tensor
    out: Tensor
    lse: Tensor | None
    keys_and_values: Tensor

    def of_tiles(self, tiles: slice, queries: int) -> _Rows:
        """The rows of some tiles of so many queries each, as views."""
        part = slice(tiles.start * queries if tiles.start else 0, tiles.stop * queries)
        return _Rows(self.queries[part], self.out[part], None if self.lse is None else self.lse[part], self[3])


class _ImageRun:
    """Image queries of one call: writes their rows of its result.

    Queries, keys and values are brought into rows of one token each, all heads of all items side by side: a tile is
    then a few long copies, and attention reads it in place. The batch's items count as heads.

    Attributes:
        chunk_limit: Memory in bytes for one chunk.
        pooled: Pooled keys and values, or None. If they are ``separate``, text and reference may be among them.
        separate: Whether all queries attend to ``pooled`` in calls of their own, merged with the windows' result.
        lse: Log-sum-exp of the windows, if it is needed.
        shared: Whether the text and reference tokens are gathered for every tile.
        gathered_pooled: Number of pooled keys that are gathered for every tile.
    """

    def __init__(self, call: AttentionCall, result: Attended) -> None:
        self.call = call
        self.result = result
        self.chunk_limit = call.chunk_limit
        image = call.image_keys
        self.shared = call.layout.length > call.layout.image
        self.pooled = call.pooled()
        # If the log-sum-exp is free, the keys that every query sees are one unmasked call without a copy for each tile.
        self.separate = call.spec.overview or (
            self.pooled is not None
            and self.pooled[0].shape[2] >= MANY_POOLED
            and lse_is_free(call.q, call.needs_grad)
            and (call.bias is None or call.bias.image is ImageBias.NONE)
        )
        if self.separate and self.pooled is not None and call.bias is None and not call.spec.overview:
            keys, values = (
                torch.cat([one[:, :, : image.start], one[:, :, image.stop :], pooled], dim=2)
                for one, pooled in zip((call.k, call.v), self.pooled, strict=True)
            )
            self.pooled = keys, values
            self.shared = False
        self.gathered_pooled = 0 if self.pooled is None or self.separate else self.pooled[0].shape[2]
        self.lse = result.lse
        if self.separate and self.lse is None:
            self.lse = call.q.new_empty(call.q.shape[:3], dtype=torch.float32)

    def run(self) -> None:
        """All tiles of all classes."""
        call = self.call
        keys = GatheredKeys(
            spec=replace(call.spec, down_factor=1, overview=False),
            device=call.q.device,
            query_rows=call.query_rows,
            pooled=self.gathered_pooled,
            shared=self.shared,
            dtype=call.q.dtype if call.bias is None else None,
        )
        plan = gathered_plan(call.layout, keys)
        batch, heads, _, head_dim = call.q.shape
        rows = call.q.permute(2, 0, 1, 3)
        # In place of each tile's queries comes its result, unless the queries are kept for gradients.
        queries = rows.index_select(0, plan.order).flatten(1, 2)
        out = torch.empty_like(queries) if call.needs_grad else queries
        lse = None if self.lse is None else self.lse.new_empty(queries.shape[:2])
        keys_and_values = self._keys_and_values()
        start = 0
        for tiles in plan.classes:
            part = slice(start, start + tiles.queries.numel())
            start = part.stop
            own = _Rows(queries[part], out[part], None if lse is None else lse[part], keys_and_values)
            self._attend_class(tiles, own)
        self.result.out.permute(2, 0, 1, 3).index_copy_(0, plan.order, out.view(-1, batch, heads, head_dim))
        if self.lse is not None and lse is not None:
            self.lse.permute(2, 0, 1).index_copy_(0, plan.order, lse.view(-1, batch, heads))
        if self.pooled is not None and call.spec.overview:
            merge_outside_of(call, *self.pooled, self.result._replace(lse=self.lse))
        elif self.separate and self.pooled is not None:
            self._merge_seen_by_all(*self.pooled)

    def _keys_and_values(self) -> Tensor:
        """(L + pooled, 2, B * heads, D): keys beside values, the gathered pooled ones last."""
        call = self.call
        batch, heads, length, head_dim = call.k.shape
        rows = call.k.new_empty(length + self.gathered_pooled, 2, batch, heads, head_dim)
        for index, tokens in enumerate((call.k, call.v)):
            rows[:length, index] = tokens.permute(2, 0, 1, 3)
            if self.gathered_pooled and self.pooled is not None:
                rows[length:, index] = self.pooled[index].permute(2, 0, 1, 3)
        return rows.flatten(2, 3)

    def _attend_class(self, tiles: GatheredClass, rows: _Rows) -> None:
        """The tiles of one class in chunks of about one size: few shapes, for libraries that plan for each."""
        number, queries = tiles.queries.shape
        most = max(1, self.chunk_limit // self._tile_bytes(queries, tiles.keys.shape[1]))
        step = -(-number // -(-number // most))
        mask = tiles.mask
        for start in range(0, number, step):
            part = slice(start, start + step)
            self._attend_chunk(tiles.queries[part], tiles.keys[part], mask, rows.of_tiles(part, queries))

    def _attend_chunk(self, queries: Tensor, keys: Tensor, mask: Tensor | None, rows: _Rows) -> None:
        """Some tiles of one class, halved as often as memory asks for.

        Args:
            queries: (tiles, queries) positions in q.
            keys: (tiles, keys) positions in the rows of keys and values.
            mask: Which keys each query sees, or None.
            rows: Of these tiles.
        """
        try:
            self._write_chunk(queries, keys, mask, rows)
        except torch.OutOfMemoryError:
            if len(queries) == 1:
                raise
        else:
            self.call.on_chunk()
            return
        half = len(queries) // 2
        for part in (slice(half), slice(half, len(queries))):
            self._attend_chunk(queries[part], keys[part], mask, rows.of_tiles(part, queries.shape[1]))

    def _write_chunk(self, queries: Tensor, keys: Tensor, mask: Tensor | None, rows: _Rows) -> None:
        """Attention with the tiles as the batch: one mask serves all of them, or each has its own."""
        call = self.call
        tiles = len(queries)
        if call.bias is not None:
            outside = call.layout.length - call.layout.image if self.shared else 0
            window_keys = keys[:, self.gathered_pooled + outside :].long()
            mask = call.bias.tiles(queries, window_keys, mask, self.gathered_pooled, call.q.dtype)
        gathered = rows.keys_and_values.index_select(0, keys.flatten()).unflatten(0, (tiles, -1))
        # (tiles, heads, tokens, D), read where they lie.
        k, v = (plain(one.transpose(1, 2)) for one in gathered.unbind(2))
        q = plain(rows.queries.unflatten(0, (tiles, -1)).transpose(1, 2))
        if rows.lse is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale)
        else:
            out, lse = attend_with_lse(
                q, k, v, scale=call.scale, mask=mask, needs_grad=call.needs_grad, sees_some=call.bias is None
            )
            rows.lse.view(tiles, -1, lse.shape[1]).copy_(lse.transpose(1, 2))
        rows.out.view(tiles, -1, *rows.out.shape[1:]).copy_(out.transpose(1, 2))

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

    def _tile_bytes(self, queries: int, keys: int) -> int:
        """Memory that one tile of a chunk takes while it is worked on."""
        q, bias = self.call.q, self.call.bias
        batch, heads, _, head_dim = q.shape
        per_token = batch * heads * head_dim * q.element_size()
        # Gathered keys and values, the copies that a CPU packs and a Mac needs of both, and the result.
        copies = 2 if q.device.type in ("cpu", "mps") else 1
        held = per_token * copies * (2 * keys + queries)
        if self.lse is not None and not lse_is_free(q, self.call.needs_grad):
            # The scores, from which the log-sum-exp is made.
            held += batch * heads * 8 * queries * keys
        if not self.call.fused:
            held += batch * heads * SCORE_BYTES * queries * keys
        if bias is not None:
            # The mask's elements, what they are made from, and the copy that a kernel may want.
            held += 3 * q.element_size() * bias.masks * queries * keys
        return held


GATHER = GatherBackend()
