"""How much of an image query's attention lies near it (paper, section 3.2 and Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layout import SequenceLayout
from ...number_checks import check_number
from ...spec import ClearSpec

CHUNK_ELEMENTS = 2**24
"""Scores in memory at a time: 64 MiB in float32."""


@dataclass(frozen=True)
class Mass:
    """Where the attention of image queries lies, as shares of all of it; means over the queries.

    Attributes:
        within: (heads, radii) on image tokens strictly closer than each radius.
        text: (heads,) on text tokens.
        reference: (heads,) on reference tokens.
    """

    within: Tensor
    text: Tensor
    reference: Tensor

    @property
    def image(self) -> Tensor:
        """(heads,) on image tokens."""
        return 1 - self.text - self.reference

    @property
    def local(self) -> Tensor:
        """(heads, radii): of what lies on the image, the share that is closer than each radius."""
        return self.within / self.image.clamp(min=1e-12)[:, None]


def attention_mass(
    q: Tensor, k: Tensor, layout: SequenceLayout, scale: float, radii: Sequence[int], queries: Tensor
) -> Mass:
    """The mass of ``softmax(q k^T * scale)`` in float32, in chunks of queries.

    Args:
        q, k: (1, heads, L, D), RoPE applied; text first, then the image row-major, then references.
        layout: Of the sequence.
        scale: Factor on the query-key products.
        radii: Window radii in tokens, each 1 or more.
        queries: (n,) indices of image queries, 0 to N - 1.

    Returns:
        Float64 on the CPU.
    """
    circles = [ClearSpec(radius) for radius in radii]
    heads, width = q.shape[1], layout.grid[1]
    places = torch.arange(layout.image, device=q.device)
    chunk = max(1, CHUNK_ELEMENTS // (max(heads, len(radii)) * layout.length))
    within = torch.zeros(heads, len(radii), dtype=torch.float64)
    text, reference = torch.zeros(heads, dtype=torch.float64), torch.zeros(heads, dtype=torch.float64)
    for part in queries.to(q.device).split(chunk):
        seen = weights_of(q, k, layout, scale, part)
        dy = (part // width)[:, None] - (places // width)[None]
        dx = (part % width)[:, None] - (places % width)[None]
        inside = torch.stack([circle.sees(dy, dx) for circle in circles]).float()
        image = seen[..., layout.image_slice]
        within += torch.einsum("hqn,rqn->hqr", image, inside).double().sum(1).cpu()
        text += seen[..., : layout.text].sum(-1).double().sum(1).cpu()
        reference += seen[..., layout.text + layout.image :].sum(-1).double().sum(1).cpu()
    return Mass(*(total / len(queries) for total in (within, text, reference)))


def weights_of(q: Tensor, k: Tensor, layout: SequenceLayout, scale: float, queries: Tensor) -> Tensor:
    """(heads, n, L) float32: attention weights of some image queries; arguments as :func:`attention_mass`."""
    chosen = q[0].index_select(1, layout.text + queries.to(q.device)).float()
    return (chosen @ k[0].float().mT * scale).softmax(-1)


def attention_maps(q: Tensor, k: Tensor, layout: SequenceLayout, scale: float, query: tuple[int, int]) -> Tensor:
    """(heads, h, w) float32: attention weights of the image query at (y, x) on the image's tokens.

    Raises:
        ValueError: The query lies outside the grid.
    """
    check_query(query, layout.grid)
    index = torch.tensor([query[0] * layout.grid[1] + query[1]])
    return weights_of(q, k, layout, scale, index)[:, 0, layout.image_slice].unflatten(1, layout.grid)


def check_query(query: tuple[int, int], grid: tuple[int, int]) -> None:
    """Refuse a query outside the grid, both (y, x) or (h, w) in tokens.

    Raises:
        ValueError: It is outside.
    """
    for name, value, side in zip(("y", "x"), query, grid, strict=True):
        check_number(f"{name} of the query", value, 0, side - 1, whole=True)


def chosen_queries(image: int, count: int, seed: int) -> Tensor:
    """(n,) ascending indices of image queries: all of them, or a seeded sample.

    Args:
        image: Image tokens N.
        count: Size of the sample; 0, or N and more, takes all.
        seed: Of the sample.
    """
    if count == 0 or count >= image:
        return torch.arange(image)
    return torch.randperm(image, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def radii_for(grid: tuple[int, int], first: int = 4) -> list[int]:
    """Radii from the first one, doubled until a window covers the grid, whose (h, w) is in tokens."""
    radii = [first]
    while not ClearSpec(radii[-1]).covers(grid):
        radii.append(2 * radii[-1])
    return radii
