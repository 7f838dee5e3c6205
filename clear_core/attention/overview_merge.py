"""Pooled keys of an overview, attended to apart and merged with the windows of the same queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..spec import ClearSpec
from .bias import ImageBias
from .budget import queries_at_once
from .call import Attended, AttentionCall
from .fused import is_fused, plain
from .lse import attend_with_lse
from .merge import merge
from .overview import outside_bias
from .overview_table import OverviewTable, overview_table


@dataclass(frozen=True, eq=False)
class OverviewQueries:
    """Image queries of whole rows.

    Attributes:
        q: (B, heads, rows * w, D).
        grid: (h, w) of the whole image in tokens.
        spec: Window and cells, with an overview.
        first_row: Row of the first query.
        scale: Factor on the query-key products.
        needs_grad: Whether gradients are wanted.
    """

    q: Tensor
    grid: tuple[int, int]
    spec: ClearSpec
    first_row: int
    scale: float
    needs_grad: bool = False


class MaskedRows(NamedTuple):
    """What a mask makes of the cells' weights.

    Attributes:
        rows: (B|1, heads|1, queries, cells) in q's dtype, for image queries counted from the first.
        masks: Number of masks over batch and heads.
        bytes: Memory that one query takes for it.
    """

    rows: Callable[[slice], Tensor]
    masks: int
    bytes: int


class OverviewBias:
    """What is added to the scores of pooled keys, in a dtype.

    Args:
        most_bytes: Memory that may be taken to make rows of it by copies of lines instead of element by element.
    """

    def __init__(self, table: OverviewTable, dtype: torch.dtype, most_bytes: int) -> None:
        self._table = table
        self._logs = table.logs.to(dtype)
        places, (width, cells) = len(table.logs), table.columns.shape
        # For each column of the grid and each place of a row of cells, that row's elements.
        self._lines: Tensor | None = None
        if places * table.columns.numel() * self._logs.element_size() <= most_bytes:
            by_place = self._logs.index_select(1, table.columns.flatten()).view(places, width, cells)
            self._lines = by_place.transpose(0, 1).reshape(width * places, cells)

    def rows(self, first: int, stop: int) -> Tensor:
        """(stop - first, cells), for the queries at these positions of the whole row-major image."""
        table, queries = self._table, stop - first
        image = torch.arange(first, stop, dtype=torch.int32, device=table.rows.device)
        y = image.div(len(table.columns), rounding_mode="floor")
        x = image - y * len(table.columns)
        rows, places = table.rows.index_select(0, y), table.logs.shape
        if self._lines is not None:
            lines = rows + (x * places[0])[:, None]
            return self._lines.index_select(0, lines.flatten()).view(queries, -1)
        index = rows[:, :, None] * places[1] + table.columns.index_select(0, x)[:, None]
        return self._logs.flatten().index_select(0, index.flatten()).view(queries, -1)


def merge_outside_of(call: AttentionCall, keys: Tensor, values: Tensor, windows: Attended) -> None:
    """:func:`merge_outside` for the image queries of a call.

    Args:
        windows: All rows of the call's result.
    """
    image, bias, lse = call.image_queries, call.bias, windows.lse
    assert lse is not None
    queries = OverviewQueries(
        call.q[:, :, image], call.layout.grid, call.spec, call.query_rows.start, call.scale, call.needs_grad
    )
    own = Attended(windows.out[:, :, image], lse[:, :, image])
    if bias is not None and bias.image is ImageBias.PER_PAIR:
        # Numbers of all image keys of a query, twice in float32, and whether they are outside.
        masked = MaskedRows(partial(_masked, call), bias.masks, 10 * bias.masks * call.layout.image)
        merge_outside(queries, keys, values, own, call.chunk_limit, call.on_chunk, masked=masked)
        return
    level = None if bias is None else partial(bias.image_level, dtype=call.q.dtype)
    merge_outside(queries, keys, values, own, call.chunk_limit, call.on_chunk, level)


def _masked(call: AttentionCall, queries: slice) -> Tensor:
    """:func:`.overview.outside_bias` of image queries, counted from the first, in q's dtype."""
    first = call.image_queries.start
    return outside_bias(call, slice(queries.start + first, queries.stop + first)).to(call.q.dtype)


def merge_outside(
    queries: OverviewQueries,
    keys: Tensor,
    values: Tensor,
    windows: Attended,
    chunk_limit: int,
    on_chunk: Callable[[], None],
    level: Callable[[slice], Tensor | None] | None = None,
    masked: MaskedRows | None = None,
) -> None:
    """Adds the pooled keys to the result of the windows, in place, some queries at a time.

    Args:
        keys, values: (B, heads, cells, D).
        windows: Result of the queries' windows, with the log-sum-exp.
        chunk_limit: Memory in bytes for one chunk.
        on_chunk: Called after each chunk.
        level: Of a mask, what it adds to the scores of all pooled keys of some queries, (B|1, heads|1, queries, 1) in
            q's dtype; None if nothing.
        masked: Of a mask that differs between image keys, what is added to the scores instead of the table's logs.
    """
    q, (out, lse), needs_grad = queries.q, windows, queries.needs_grad
    assert lse is not None
    if not q.shape[2] or queries.spec.covers(queries.grid):
        return
    table = overview_table(queries.grid, queries.spec, q.device)
    bias = OverviewBias(table, q.dtype, chunk_limit // 4)
    first = queries.first_row * queries.grid[1]
    keys, values = plain(keys), plain(values)
    some_level = None if level is None else level(slice(0, 1))
    masks = masked.masks if masked else 1 if some_level is None else some_level.numel()
    step = _queries_at_once(q, keys.shape[2], masks, chunk_limit, masked.bytes if masked else 0)
    for start in range(0, q.shape[2], step):
        rows = slice(start, min(start + step, q.shape[2]))
        added = masked.rows(rows) if masked else bias.rows(first + rows.start, first + rows.stop)[None, None]
        levels = None if level is None or some_level is None else level(rows)
        if levels is not None:
            added = added + levels
        # No kernel is asked about a query that sees no key, whose gradient would not be a number.
        nothing = added.amax(dim=-1) == float("-inf") if table.all_seen or levels is not None or masked else None
        if nothing is not None:
            added = added.masked_fill(nothing[..., None], 0.0)
        pooled, sums = attend_with_lse(
            plain(q[:, :, rows]), keys, values, scale=queries.scale, mask=added, needs_grad=needs_grad, sees_some=True
        )
        own, own_sums = out[:, :, rows], lse[:, :, rows]
        if needs_grad:
            # Gradients want what is written over here.
            own, own_sums = own.clone(), own_sums.clone()
        if nothing is None:
            out[:, :, rows], lse[:, :, rows] = merge(own, own_sums, pooled, sums)
        else:
            # The windows too may be without keys, by a mask.
            some_sums = own_sums.masked_fill(nothing & (own_sums == float("-inf")), 0.0)
            merged, whole = merge(own, some_sums, pooled, sums.masked_fill(nothing, float("-inf")))
            out[:, :, rows], lse[:, :, rows] = merged, torch.where(nothing, own_sums, whole)
        on_chunk()


def _queries_at_once(q: Tensor, cells: int, masks: int, chunk_limit: int, more: int) -> int:
    """Number of queries of one chunk.

    Args:
        masks: Number of masks over batch and heads.
        more: Bytes that a query takes beside.
    """
    batch, heads, _, head_dim = q.shape
    fused = is_fused(q.device, q.dtype, head_dim, True)
    # The index of a pair, what is added to its score, and two copies of it: one without its rows of -inf, one aligned.
    bias = (4 + 3 * masks * q.element_size()) * cells
    # Results of both parts and of the whole in float32.
    results = 12 * batch * heads * head_dim
    at_once = queries_at_once(q.device, batch * heads * cells, chunk_limit, fused)
    return min(at_once, max(1, chunk_limit // (bias + results + more)))
