"""Image queries of a strip: their windows, and the keys that every image query sees."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..attention.api import clear_attention
from ..attention.budget import default_chunk_bytes
from ..attention.call import Attended
from ..attention.merge import merge
from ..attention.overview_merge import OverviewQueries, merge_outside
from ..attention.pool import pool_tokens
from ..spec import ClearSpec
from .border import keys_of_rows, with_border
from .call import StripCall
from .peers import Transfer
from .strips import interior_and_border, widened
from .unwindowed import attended_chunks


class ImageRows:
    """Windows and the keys that every query sees are attended to apart, and merged: nothing waits for all keys.

    In the order of the calls: ``__init__``, :meth:`interior`, :meth:`border`, :meth:`seen_by_all`.

    Args:
        result: (B, heads, own rows * w, D), where the result is written.
    """

    def __init__(self, call: StripCall, result: Tensor) -> None:
        self._call = call
        # Without text, references and pooling the windows are all.
        merged = call.shared or call.spec.pools
        lse = result.new_empty(result.shape[:3], dtype=torch.float32) if merged else None
        self._result = Attended(result, lse)
        self._interior, self._border = interior_and_border(call.own, call.spec.radius, call.grid[0])

    def interior(self) -> None:
        """The windows that lie within the strip."""
        call = self._call
        self._windows(self._interior, call.own, call.k[:, :, call.image], call.v[:, :, call.image])

    def border(self, border: Transfer) -> None:
        """The windows that reach beyond; waits for the border."""
        call = self._call
        parts = with_border(call, border)
        for rows in self._border:
            seen = widened(rows, call.spec.radius, call.grid[0])
            self._windows(rows, seen, *keys_of_rows(parts, seen, call.grid[1]))

    def _windows(self, rows: range, key_rows: range, k: Tensor, v: Tensor) -> None:
        """Windows of some of the own rows.

        Args:
            key_rows: The rows of k and v.
        """
        if not rows:
            return
        call, (out, lse) = self._call, self._result
        windows = clear_attention(
            call.q[:, :, call.positions(rows)],
            k,
            v,
            grid=(len(key_rows), call.grid[1]),
            spec=ClearSpec(call.spec.radius),
            scale=call.scale,
            query_rows=range(rows.start - key_rows.start, rows.stop - key_rows.start),
            on_chunk=call.on_chunk,
            return_lse=lse is not None,
            backend=call.backend,
        )
        first = call.image.start
        part = slice(call.positions(rows).start - first, call.positions(rows).stop - first)
        if lse is None:
            out[:, :, part] = cast(Tensor, windows)
        else:
            out[:, :, part], lse[:, :, part] = cast("tuple[Tensor, Tensor]", windows)

    def seen_by_all(self, pooled: Transfer | None) -> None:
        """Text, reference and pooled keys; waits for the pooled ones."""
        call, (out, lse) = self._call, self._result
        if lse is None:
            return
        keys, values = ([one[:, :, : call.image.start], one[:, :, call.image.stop :]] for one in (call.k, call.v))
        # A strip after the other, as their rows lie in the grid.
        cells = [] if pooled is None else list(pooled.wait().values())
        q = call.q[:, :, call.image]
        if call.spec.overview and cells:
            queries = OverviewQueries(q, call.grid, call.spec, call.own.start, call.scale)
            limit = default_chunk_bytes(q.device, q.numel() * q.element_size())
            pooled_keys, pooled_values = torch.cat(cells, dim=3).unbind()
            merge_outside(queries, pooled_keys, pooled_values, Attended(out, lse), limit, call.on_chunk)
            cells = []
        for strip in cells:
            keys.append(strip[0])
            values.append(strip[1])
        for part, *others in attended_chunks(q, torch.cat(keys, dim=2), torch.cat(values, dim=2), call.scale):
            out[:, :, part], _ = merge(out[:, :, part], lse[:, :, part], *others)
            call.on_chunk()


def send_pooled(call: StripCall) -> Transfer | None:
    """Starts to give the pooled keys and values of the own strip to all, (2, B, heads, cells, D); None without any.

    If every window covers the grid, nothing is left for an overview.
    """
    weight = call.spatial_weight
    if weight is None or call.spec.is_dense(call.grid):
        return None
    d, width = call.spec.down_factor, call.grid[1]
    batch, heads, _, head_dim = call.k.shape
    # Strips are cut between cells.
    shapes = [(2, batch, heads, -(-len(rows) // d) * -(-width // d), head_dim) for rows in call.strips]
    grid = len(call.own), width
    own = torch.stack([pool_tokens(one[:, :, call.image], grid, weight) for one in (call.k, call.v)])
    return call.peers.all_gather(own, shapes)
