"""Attention with clipped rotary distances (paper, section 3.2 and Figure 5).

RoPE makes a score depend on the difference of two positions. Two perturbations change that difference and nothing else,
between image tokens alone, on the axes of rows and columns, each axis for itself:

- far: a difference beyond m becomes m, in its own direction. A token within m on both axes stays where it is.
- near: a difference below m becomes m, in its own direction; 0 counts as positive. The query's own token
  moves too, and a token that is far away on one axis and within m on the other. Only a token that is at least m away
  on both axes stays where it is.

Keys arrive with RoPE. A key is turned further by the change of its difference, which is the same for all queries of a
row (or column): so the cost is that of dense attention in float32, O(N^2 * D), besides (h + w) turned copies of the
keys. A head's scores are computed for a band of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...integrations.diffusers_styles import turned_pairs
from ...layout import SequenceLayout
from ...number_checks import check_number
from ...rope import GRID_AXES, cos_sin
from .mass import CHUNK_ELEMENTS

Side = Literal["far", "near"]


@dataclass(frozen=True)
class Clip:
    """One perturbation.

    Attributes:
        side: Which differences are changed.
        limit: m in tokens, 0 or more.

    Raises:
        ValueError: The limit is no such number.
    """

    side: Side
    limit: int

    def __post_init__(self) -> None:
        check_number("limit", self.limit, 0, whole=True)

    def __call__(self, differences: Tensor) -> Tensor:
        """Integer differences (key minus query) after the clip."""
        if self.side == "far":
            return differences.clamp(-self.limit, self.limit)
        return torch.where(differences < 0, differences.clamp(max=-self.limit), differences.clamp(min=self.limit))

    def changes(self, grid: tuple[int, int]) -> bool:
        """Whether any difference on a grid (h, w) is changed."""
        return self.limit < max(grid) - 1 if self.side == "far" else self.limit > 0


@dataclass(frozen=True, eq=False)
class _Axis:
    """A rotary axis of rows or columns: its part of the head, and (side, side, d/2) complex turns by which a key of
    place j is turned further for a query of place i."""

    part: slice
    turns: Tensor


def clipped_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, scale: float, clip: Clip, frequencies: Sequence[Tensor]
) -> Tensor:
    """Attention of one block under a perturbation.

    Args:
        q, k, v: (1, heads, L, D), RoPE applied to q and k in adjacent pairs of elements; text first, then the image
            row-major, then references.
        layout: Of the sequence.
        scale: Factor on the query-key products.
        clip: The perturbation.
        frequencies: (d / 2,) float64 of each rotary axis, in the order of their parts of a head.

    Returns:
        (1, heads, L, D) in q's dtype; text and reference queries attend as before.

    Raises:
        ValueError: The axes do not fill the head.
    """
    sizes = [2 * len(each) for each in frequencies]
    if sum(sizes) != q.shape[3]:
        raise ValueError(f"the rotary axes have {sizes} elements; expected {q.shape[3]} in all, the size of a head.")
    rows, columns = (_axis(axis, sizes, layout.grid[axis - 1], clip, frequencies, q.device) for axis in GRID_AXES)
    out = torch.empty_like(q)
    image_end = layout.text + layout.image
    for others in (slice(layout.text), slice(image_end, None)):
        out[:, :, others] = F.scaled_dot_product_attention(q[:, :, others], k, v, scale=scale)
    for head in range(q.shape[1]):
        one_q, one_k, one_v = (each[0, head].float() for each in (q, k, v))
        image = _one_head(one_q, one_k, one_v, layout, scale, rows, columns)
        out[0, head, layout.image_slice] = image.to(out.dtype)
    return out


def _axis(
    axis: int, sizes: list[int], side: int, clip: Clip, frequencies: Sequence[Tensor], device: torch.device
) -> _Axis:
    start = sum(sizes[:axis])
    places = torch.arange(side)
    differences = places[None] - places[:, None]
    further = (clip(differences) - differences).float()
    turns = torch.complex(*cos_sin(further[..., None], [frequencies[axis]]))
    return _Axis(slice(start, start + sizes[axis]), turns.to(device))


def _one_head(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, scale: float, rows: _Axis, columns: _Axis
) -> Tensor:
    """(N, D) of the image queries of one head; q, k, v (L, D) float32."""
    height, width = layout.grid
    image_q = q[layout.image_slice].unflatten(0, layout.grid)
    keys = k[layout.image_slice].unflatten(0, layout.grid)
    rest = torch.ones(q.shape[1], dtype=torch.bool, device=q.device)
    rest[rows.part] = rest[columns.part] = False
    rest_keys = keys[..., rest].flatten(0, 1)
    # The image first, so that scores and values are put together once.
    before, after = slice(layout.text), slice(layout.text + layout.image, None)
    others, values = torch.cat([k[before], k[after]]), torch.cat([v[layout.image_slice], v[before], v[after]])
    # (columns of queries, h, columns of keys, d); that of rows is made band by band.
    by_column = turned_pairs(keys[..., columns.part], columns.turns[:, None]).flatten(1, 2)
    out: list[Tensor] = []
    for band in torch.arange(height, device=q.device).split(max(1, CHUNK_ELEMENTS // (width * layout.length))):
        queries = image_q[band]
        by_row = turned_pairs(keys[..., rows.part], rows.turns[band][:, :, None]).flatten(1, 2)
        image = queries[..., rest] @ rest_keys.mT
        image += queries[..., rows.part] @ by_row.mT
        image += (queries[..., columns.part].transpose(0, 1) @ by_column.mT).transpose(0, 1)
        scores = torch.cat([image, queries @ others.mT], dim=-1).mul_(scale)
        out.append((scores.softmax(-1) @ values).flatten(0, 1))
    return torch.cat(out)


def limits_for(grid: tuple[int, int]) -> list[int]:
    """1, 2, 4 ... below the longer side of a grid, whose (h, w) is in tokens, less one."""
    limits = [1]
    while 2 * limits[-1] < max(grid) - 1:
        limits.append(2 * limits[-1])
    return limits
