"""Windows without a compiler: for each tile of queries the keys it needs are gathered, then ordinary attention runs.

Exact on any device and dtype that torch's attention knows; works through the tiles in chunks of a byte budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from ..bias import AttentionBias
from ..budget import default_chunk_bytes
from ..merge import merge
from ..outside_image import attend_outside_image, attend_with_lse, empty_output, returns_lse
from ..pool import pool_tokens

# From here on pooled keys are attended to apart and merged. Measured on a CPU: as fast with 256 of them, a fifth to a
# third faster with 1024. Each of the two parts is rounded to the dtype, so not where nothing is won.
MANY_POOLED = 512


@dataclass(frozen=True, eq=False)
class TileClass:
    """Query tiles of one size that lie alike in their neighbourhood, so that one list of keys and one mask fit all.

    Attributes:
        size: (height, width) of the tiles in tokens.
        first: (tiles,) int64, place of each tile's first token in the row-major image.
        key_y, key_x: (keys,) int16, keys that some query of a tile sees, from the tile's first token.
        covered: Whether every query of a tile sees all of them.
    """

    size: tuple[int, int]
    first: Tensor
    key_y: Tensor
    key_x: Tensor
    covered: bool

    @property
    def queries(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def keys(self) -> int:
        return len(self.key_y)


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: SequenceLayout,
    spec: ClearSpec,
    spatial_weight: Tensor | None,
    scale: float,
    bias: AttentionBias | None = None,
    chunk_bytes: int | None = None,
    on_chunk: Callable[[], None] | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """CLEAR attention; arguments as in :func:`clear_core.clear_attention`, already checked.

    A chunk is a few query tiles of one class; its keys, values, queries and results fit ``chunk_bytes``, down to a
    single tile.
    """
    budget = default_chunk_bytes(q.device) if chunk_bytes is None else chunk_bytes
    out = empty_output(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
    # With a bias every item has masks of its own, and tiles take the batch's place.
    items = [slice(None)] if bias is None else [slice(i, i + 1) for i in range(q.shape[0])]
    for item in items:
        _attend_image(
            q[item],
            k[item],
            v[item],
            out[item],
            None if lse is None else lse[item],
            layout,
            spec,
            spatial_weight,
            scale,
            None if bias is None else bias.item(item.start),
            budget,
            on_chunk,
        )
    attend_outside_image(
        q, k, v, out, lse, layout=layout, scale=scale, chunk_bytes=chunk_bytes, on_chunk=on_chunk, bias=bias
    )
    return (out, lse) if return_lse else out


def _attend_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    layout: SequenceLayout,
    spec: ClearSpec,
    spatial_weight: Tensor | None,
    scale: float,
    bias: AttentionBias | None,
    budget: int,
    on_chunk: Callable[[], None] | None,
) -> None:
    """Image queries: writes their rows of ``out`` and ``lse``. A bias is one item's."""
    image, return_lse = layout.image_slice, lse is not None
    seen_by_all = _seen_by_all(layout, q.device)
    pooled = None
    if spatial_weight is not None:
        pooled = [pool_tokens(one[:, :, image], layout.grid, spatial_weight) for one in (k, v)]
    # Where the log-sum-exp is at hand, what every query sees is one unmasked call without a copy for each tile.
    apart = (
        pooled is not None
        and pooled[0].shape[2] >= MANY_POOLED
        and returns_lse(q, k, v)
        and (bias is None or bias.image == "none")
    )
    if apart and bias is None:
        pooled = [
            torch.cat([one[:, :, : image.start], one[:, :, image.stop :], extra], dim=2)
            for one, extra in zip((k, v), pooled, strict=True)
        ]
        seen_by_all = seen_by_all[:0]

    for tiles in tile_classes(layout.grid, spec.radius, query_tile(q.device, spec.radius), q.device):
        query_offset, key_offset, window = _offsets_and_mask(tiles, layout.grid, spec.radius)
        pooled_keys = pooled[0].shape[2] if pooled and not apart else 0
        extra_keys = len(seen_by_all) + pooled_keys
        window = None if tiles.covered else window
        mask = None if window is None or bias is not None else F.pad(window, (extra_keys, 0), value=True)
        tile_bytes = _tile_bytes(q, tiles.queries, tiles.keys + extra_keys, return_lse or apart)
        if bias is not None:
            # The numbers, what they are made from, and the copy that a kernel may want.
            tile_bytes += 3 * q.element_size() * bias.masks * tiles.queries * (tiles.keys + extra_keys)
        step = max(1, budget // tile_bytes)
        for first in (tiles.first + image.start).split(step):
            tile_queries, window_keys = first[:, None] + query_offset, first[:, None] + key_offset
            queries = tile_queries.flatten()
            keys = torch.cat([seen_by_all.expand(len(first), -1), window_keys], dim=1).flatten()
            if bias is not None:
                mask = bias.tiles(tile_queries, window_keys, window, pooled_keys, q.dtype)
            part, part_lse = _attend_tiles(q, k, v, queries, keys, len(first), mask, scale, pooled, apart, return_lse)
            out[:, :, queries] = part
            if lse is not None:
                lse[:, :, queries] = part_lse
            if on_chunk is not None:
                on_chunk()


def _attend_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    tiles: int,
    mask: Tensor | None,
    scale: float,
    pooled: list[Tensor] | None,
    apart: bool,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """One chunk: (B, heads, queries, D) and, where it is at hand, (B, heads, queries).

    Attention takes four dimensions. Tiles with one bool mask for all stand beside the heads, and the copies are
    contiguous; tiles with a mask of their own, (tiles, heads|1, queries, keys), in the place of the batch, which is
    one item, so that it need not be written out for every head.
    """
    biased = mask is not None and mask.ndim == 4
    tile_q = q.index_select(2, queries)
    tile_k, tile_v = (one.index_select(2, keys) for one in (k, v))
    if pooled and not apart:
        tile_k, tile_v = (
            torch.cat([extra[:, :, None].expand(-1, -1, tiles, -1, -1), one.unflatten(2, (tiles, -1))], dim=3)
            for one, extra in zip((tile_k, tile_v), pooled, strict=True)
        )
    arguments = [one.reshape(*one.shape[:2], tiles, -1, one.shape[-1]) for one in (tile_q, tile_k, tile_v)]
    arguments = [one[0].transpose(0, 1) if biased else one.flatten(1, 2) for one in arguments]
    if return_lse or apart:
        out, lse = attend_with_lse(*arguments, scale, mask)
        lse = (lse.transpose(0, 1) if biased else lse).reshape(tile_q.shape[:3])
    else:
        out, lse = F.scaled_dot_product_attention(*arguments, attn_mask=mask, scale=scale), None
    out = (out.transpose(0, 1) if biased else out).reshape(tile_q.shape)
    if apart:
        out, lse = merge(out, lse, *attend_with_lse(tile_q, *pooled, scale))
    return out, lse


def _tile_bytes(q: Tensor, queries: int, keys: int, with_lse: bool) -> int:
    """Memory that one tile of a chunk takes while it is worked on."""
    batch, heads, _, head_dim = q.shape
    per_token = batch * heads * head_dim * q.element_size()
    # Gathered keys and values, and on a CPU the packed copies that its attention makes of both; queries and results.
    copies = 2 if q.device.type == "cpu" else 1
    held = per_token * (2 * copies * keys + 3 * queries) + 8 * (keys + queries)
    if with_lse:
        # Results of both parts and of the whole in float32.
        held += batch * heads * head_dim * 12 * queries
        if q.device.type != "cpu":
            held += batch * heads * 8 * queries * keys
    return held


def _seen_by_all(layout: SequenceLayout, device: torch.device) -> Tensor:
    """Places of text and reference tokens in the sequence, int64."""
    image = layout.image_slice
    return torch.cat([torch.arange(image.start, device=device), torch.arange(image.stop, layout.length, device=device)])


# ---- tiles ----


def query_tile(device: torch.device, radius: int) -> tuple[int, int]:
    """(height, width) in tokens that query tiles should have about.

    On a CPU 16 x 16 was the fastest or within 5 % of it for every radius. Other devices pay more for each copied
    key, so their tiles share keys among more queries.
    """
    if device.type == "cpu":
        return 16, 16
    return (16, 32) if radius <= 16 else (32, 32)


@lru_cache(maxsize=16)
def tile_classes(
    grid: tuple[int, int], radius: int, tile: tuple[int, int], device: torch.device
) -> tuple[TileClass, ...]:
    """All query tiles of a grid, class by class: every token in exactly one tile. Cached and never changed."""
    # What is made under inference_mode would be refused by autograd for the rest of its life in the cache.
    with torch.inference_mode(False):
        classes = []
        for (height, before_y, span_y), tops in _axis_classes(grid[0], tile[0], radius).items():
            for (width, before_x, span_x), lefts in _axis_classes(grid[1], tile[1], radius).items():
                y = torch.arange(span_y, dtype=torch.int32, device=device) - before_y
                x = torch.arange(span_x, dtype=torch.int32, device=device) - before_x
                # Distance to the nearest query: 0 inside the tile. The corners of the neighbourhood are too far.
                gap_y, gap_x = y - y.clamp(0, height - 1), x - x.clamp(0, width - 1)
                near = (gap_y.square()[:, None] + gap_x.square() < radius**2).nonzero()
                reach_y = max(height - 1 + before_y, span_y - before_y - 1)
                reach_x = max(width - 1 + before_x, span_x - before_x - 1)
                covered = reach_y**2 + reach_x**2 < radius**2
                first = (
                    torch.tensor(tops, device=device)[:, None] * grid[1] + torch.tensor(lefts, device=device)
                ).flatten()
                classes.append(
                    TileClass(
                        (height, width), first, y[near[:, 0]].to(torch.int16), x[near[:, 1]].to(torch.int16), covered
                    )
                )
        return tuple(classes)


def _axis_classes(side: int, tile: int, radius: int) -> dict[tuple[int, int, int], list[int]]:
    """Starts of the tiles along one axis, by (tile length, neighbours before the tile, tokens of the neighbourhood).

    The side is split evenly, so that no tile is a thin rest with keys for a whole one.
    """
    count = max(1, round(side / tile))
    bounds = [side * i // count for i in range(count + 1)]
    classes: dict[tuple[int, int, int], list[int]] = {}
    for start, stop in itertools.pairwise(bounds):
        first, last = max(0, start - radius + 1), min(side, stop + radius - 1)
        classes.setdefault((stop - start, start - first, last - first), []).append(start)
    return classes


def _offsets_and_mask(tiles: TileClass, grid: tuple[int, int], radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of queries and keys from a tile's first token in the row-major image, and who sees whom.

    Returns:
        (queries,) int64, (keys,) int64 and bool (queries, keys).
    """
    device = tiles.key_y.device
    y = torch.arange(tiles.size[0], dtype=torch.int32, device=device)
    x = torch.arange(tiles.size[1], dtype=torch.int32, device=device)
    queries = (y[:, None].long() * grid[1] + x).flatten()
    keys = tiles.key_y.long() * grid[1] + tiles.key_x
    dy, dx = (y[:, None] - tiles.key_y).square(), (x[:, None] - tiles.key_x).square()
    return queries, keys, (dy[:, None] + dx < radius**2).flatten(0, 1)
