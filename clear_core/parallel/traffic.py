"""Bytes that one attention call sends, counted from sizes alone."""

from __future__ import annotations

from typing import NamedTuple

from ..layout import SequenceLayout
from ..spec import ClearSpec
from .strips import split_rows, transfers

LSE_BYTES = 4  # of one log-sum-exp, float32


class StripTraffic(NamedTuple):
    """Bytes that one rank sends in one call of :func:`.clear_attention_strip`; ``sum()`` gives all of them.

    Attributes:
        border: Keys and values of rows that other strips' queries see.
        text: Text and reference rows: parts to those who join them, and what this rank joined to all.
        lse: Log-sum-exps of these parts.
        pooled: Pooled keys and values.
    """

    border: int
    text: int
    lse: int
    pooled: int


def strip_traffic(
    layout: SequenceLayout,
    spec: ClearSpec,
    ranks: int,
    *,
    heads: int,
    head_dim: int,
    element_bytes: int = 2,
    batch: int = 1,
    average: bool = False,
) -> tuple[StripTraffic, ...]:
    """By rank: what it sends in one layer.

    Args:
        layout: Of the whole sequence.
        spec: Window and pooling.
        ranks: Number of ranks.
        heads, head_dim, batch: Of q.
        element_bytes: Of q's dtype; 2 for bfloat16.
        average: Whether text rows are averaged.
    """
    (height, width), d = layout.grid, spec.down_factor
    token = batch * heads * head_dim * element_bytes
    strips = split_rows(height, ranks, multiple=d)
    nothing_pooled = not spec.pools or spec.is_dense(layout.grid)
    border = [0] * ranks
    for (sender, _), rows in transfers(strips, spec.radius).items():
        border[sender] += 2 * len(rows) * width * token
    queries = layout.text + layout.reference
    shares = [len(share) for share in split_rows(queries, ranks)]
    found: list[StripTraffic] = []
    for rank, share in enumerate(shares):
        # A part of each query that another rank joins, and the own share to everyone.
        text = (queries - share + (ranks - 1) * share) * token
        lse = 0 if average else (queries - share) * batch * heads * LSE_BYTES
        cells = 0 if nothing_pooled else -(-len(strips[rank]) // d) * -(-width // d)
        found.append(StripTraffic(border[rank], text, lse, (ranks - 1) * 2 * cells * token))
    return tuple(found)


def heads_traffic(tokens: int, ranks: int, *, heads: int, head_dim: int, element_bytes: int = 2, batch: int = 1) -> int:
    """Bytes that all ranks together send in one call of :func:`.attend_by_heads`.

    Args:
        tokens: Of the whole sequence.
        ranks: Number of ranks; divides ``heads``.
        heads, head_dim, batch: Of q.
        element_bytes: Of q's dtype; 2 for bfloat16.
    """
    # Of each token three tensors go to where its heads are computed and one comes back, but for the own heads.
    return 4 * tokens * batch * (heads - heads // ranks) * head_dim * element_bytes
