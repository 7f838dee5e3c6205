"""Windows without a compiler: the keys of each query tile are gathered, then dense attention runs on them.

Exact on any device and dtype that torch's attention knows; works through the tiles in chunks of limited memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bias import ImageBias
from ..call import Attended, AttentionCall, CallKind
from ..lse import attend_with_lse, lse_is_free
from ..merge import merge
from ..outside_image import attend_outside_image
from ..tiling.classes import TileClass, query_tile, tile_classes

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
            if call.bias is None:
                _ImageRun(call, result, call.chunk_limit).run()
            else:
                # With a bias every item has masks of its own, and tiles take the batch's dimension.
                for index in range(call.q.shape[0]):
                    out, lse = (None if one is None else one[index : index + 1] for one in result)
                    assert out is not None
                    _ImageRun(call.of_item(index), Attended(out, lse), call.chunk_limit).run()
        attend_outside_image(call, result)
        return result


class _ImageRun:
    """Image queries of one call: writes their rows of its result.

    Attributes:
        chunk_limit: Memory in bytes for one chunk.
        pooled: Pooled keys and values, or None. If they are ``separate``, text and reference may be among them.
        separate: Whether all queries attend to ``pooled`` in one unmasked call, merged with the windows' result.
        shared: Positions in k of the text and reference tokens that every tile attends to, int64.
    """

    def __init__(self, call: AttentionCall, result: Attended, chunk_limit: int) -> None:
        self.call = call
        self.result = result
        self.chunk_limit = chunk_limit
        image, device = call.image_keys, call.k.device
        self.shared = torch.cat(
            [torch.arange(image.start, device=device), torch.arange(image.stop, call.layout.length, device=device)]
        )
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
            self.shared = self.shared[:0]

    def run(self) -> None:
        """All tiles of all classes."""
        call = self.call
        tile = query_tile(call.q.device, call.spec.radius)
        for tiles in tile_classes(call.layout.grid, call.spec, tile, call.q.device, call.query_rows):
            self._attend_class(tiles)

    def _attend_class(self, tiles: TileClass) -> None:
        call, layout, bias = self.call, self.call.layout, self.call.bias
        query_offset, key_offset, window = tiles.offsets_and_mask(layout.grid[1], call.spec)
        pooled = 0 if self.pooled is None or self.separate else self.pooled[0].shape[2]
        window = None if tiles.covered else window
        mask = None
        if window is not None and bias is None:
            mask = F.pad(window, (len(self.shared) + pooled, 0), value=True)
        step = max(1, self.chunk_limit // self._tile_bytes(tiles.queries, tiles.keys + len(self.shared) + pooled))
        # From positions in k to positions in q, which may begin with a later row.
        skipped = call.query_rows.start * layout.grid[1]
        for first in (tiles.first + layout.text).split(step):
            tile_queries, window_keys = first[:, None] + (query_offset - skipped), first[:, None] + key_offset
            queries = tile_queries.flatten()
            keys = torch.cat([self.shared.expand(len(first), -1), window_keys], dim=1).flatten()
            if bias is not None:
                mask = bias.tiles(tile_queries, window_keys, window, pooled, call.q.dtype)
            out, lse = self._attend_tiles(queries, keys, len(first), mask)
            self.result.out[:, :, queries] = out
            if self.result.lse is not None and lse is not None:
                self.result.lse[:, :, queries] = lse
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
        if call.return_lse or self.separate:
            out, lse = attend_with_lse(*arguments, scale=call.scale, mask=mask, needs_grad=call.needs_grad)
            lse = (lse.transpose(0, 1) if own_masks else lse).reshape(q.shape[:3])
        else:
            out = F.scaled_dot_product_attention(*arguments, attn_mask=mask, scale=call.scale)
        out = (out.transpose(0, 1) if own_masks else out).reshape(q.shape)
        if self.separate and self.pooled is not None and lse is not None:
            seen_by_all = attend_with_lse(q, *self.pooled, scale=call.scale, needs_grad=call.needs_grad)
            out, lse = merge(out, lse, *seen_by_all)
        return Attended(out, lse)

    def _tile_bytes(self, queries: int, keys: int) -> int:
        """Memory that one tile of a chunk takes while it is worked on."""
        q, bias = self.call.q, self.call.bias
        batch, heads, _, head_dim = q.shape
        per_token = batch * heads * head_dim * q.element_size()
        # Gathered keys and values, and on a CPU the packed copies that attention makes of both; queries and results.
        copies = 2 if q.device.type == "cpu" else 1
        held = per_token * (2 * copies * keys + 3 * queries) + 8 * (keys + queries)
        if self.call.return_lse or self.separate:
            # Results of both parts and of the whole in float32.
            held += batch * heads * head_dim * 12 * queries
            if q.device.type != "cpu":
                held += batch * heads * 8 * queries * keys
        if bias is not None:
            # The mask's elements, what they are made from, and the copy that a kernel may want.
            held += 3 * q.element_size() * bias.masks * queries * keys
        return held


GATHER = GatherBackend()
