"""One strip's call of attention: what the parts of it share, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..spec import ClearSpec
from .peers import Peers


@dataclass(frozen=True, eq=False)
class StripCall:
    """One call of :func:`.clear_attention_strip`.

    Attributes:
        q, k, v: (B, heads, T + own rows * w + R, D): text, the own rows, reference tokens.
        grid: (h, w) of the whole image in tokens.
        strips: The rows of each rank.
        spec: Window and pooling.
        spatial_weight: (d, d) pooling weights; None exactly if ``spec`` does not pool.
        scale: Factor on the query-key products.
        reference: Number of reference tokens R.
        peers: The ranks.
        backend: For the windows.
        on_chunk: Called after each chunk of work.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grid: tuple[int, int]
    strips: tuple[range, ...]
    spec: ClearSpec
    spatial_weight: Tensor | None
    scale: float
    reference: int
    peers: Peers
    backend: str
    on_chunk: Callable[[], None]

    @property
    def own(self) -> range:
        """The own rows."""
        return self.strips[self.peers.rank]

    @property
    def image(self) -> slice:
        """Positions of the own image tokens in q, k and v."""
        stop = self.q.shape[2] - self.reference
        return slice(stop - len(self.own) * self.grid[1], stop)

    @property
    def shared(self) -> int:
        """Number of text and reference tokens, which every rank holds."""
        return self.image.start + self.reference

    def positions(self, rows: range) -> slice:
        """Positions of some of the own rows in q, k and v."""
        first, width = self.image.start, self.grid[1]
        return slice(first + (rows.start - self.own.start) * width, first + (rows.stop - self.own.start) * width)
