"""Blocks of 64 tokens, and which of them ``sol_attn`` chooses for each other: its published rule, on block means.

``sol_attn`` itself gives a result and not its choice; tests hold this one to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import e, log2

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import SequenceLayout

BLOCK, TILE = 64, 8
"""Tokens of a block, and the side of a square one."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A sequence cut into blocks.

    Attributes:
        tokens: (n, 64) indices of the sequence's tokens; -1 is an empty place, and stands behind the others.
        text: Number of blocks that hold text; these are the first ones.
    """

    tokens: Tensor
    text: int

    @classmethod
    def of(cls, layout: SequenceLayout, tiles: bool) -> Blocks:
        """Blocks of 64 consecutive tokens; with ``tiles``, text and 8 x 8 image tokens each have blocks of their own.

        The blocks of consecutive tokens are those of the host: of a picture 64 tokens wide each is a piece of one row
        or of two, and the first one holds text and image.
        """
        return _cut(layout, tiles)

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) tokens of each block."""
        return (self.tokens >= 0).sum(1)

    @cached_property
    def block_of(self) -> Tensor:
        """(L,) the block of each token of the sequence."""
        live = self.tokens >= 0
        found = torch.empty(int(live.sum()), dtype=torch.long)
        found[self.tokens[live]] = live.nonzero()[:, 0]
        return found

    def gathered(self, sequence: Tensor) -> Tensor:
        """(heads, L, D) in the order of the blocks: (heads, n, 64, D), zeros in empty places."""
        places = sequence[:, self.tokens.clamp(min=0)]
        return places * (self.tokens >= 0)[..., None].to(sequence.dtype)

    def means(self, sequence: Tensor) -> Tensor:
        """(heads, n, D) float32."""
        return self.gathered(sequence.float()).sum(2) / self.lengths[:, None]

    def keys_per_query(self, choice: Tensor, layout: SequenceLayout) -> float:
        """Mean number of keys that image queries see exactly, over queries and heads."""
        keys = (choice.double() @ self.lengths.double()).mean(0)
        return keys[self.block_of[layout.image_slice]].mean().item()

    def averages_per_query(self, choice: Tensor, layout: SequenceLayout) -> float:
        """Mean number of blocks that image queries do not see exactly."""
        others = (~choice).double().sum(-1).mean(0)
        return others[self.block_of[layout.image_slice]].mean().item()


@lru_cache(maxsize=8)
def _cut(layout: SequenceLayout, tiles: bool) -> Blocks:
    text = -(-layout.text // BLOCK)
    every = torch.arange(layout.length)
    if not tiles:
        return Blocks(_padded(every), text)
    image = layout.image_slice
    height, width = layout.grid
    grid = F.pad(every[image].unflatten(0, layout.grid), (0, -width % TILE, 0, -height % TILE), value=-1)
    squares = grid.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1).flatten(1)
    # Tokens first: what is empty stands behind them.
    squares = squares.gather(1, (squares < 0).int().argsort(dim=1, stable=True))
    return Blocks(torch.cat([_padded(every[: image.start]), squares, _padded(every[image.stop :])]), text)


def _padded(tokens: Tensor) -> Tensor:
    return F.pad(tokens, (0, -len(tokens) % BLOCK), value=-1).unflatten(0, (-1, BLOCK)) if len(tokens) else _NOTHING


_NOTHING = torch.empty(0, BLOCK, dtype=torch.long)


def choice(
    q: Tensor, k: Tensor, scale: float, blocks: Blocks, *, keep: int = 0, tau: float = 0.0, sinks: int = 0
) -> Tensor:
    """Which key blocks each query block sees exactly: bool (heads, n, n), queries first.

    Always: the block itself, its neighbours in the sequence, the sinks, and all blocks for the sinks' queries. Then
    either the ``keep`` blocks, other than sinks, of the highest score of means, or those whose score is more than
    ``tau`` standard deviations above the mean key's (arXiv 2607.24027; comfy-kitchen 0.2.40, ``backends/eager``).

    Args:
        q, k: (1, heads, L, D).
        scale: Factor on the query-key products.
        blocks: Of the sequence.
        keep: Number of blocks; 0 chooses by ``tau``.
        tau: Threshold.
        sinks: Number of first blocks that everything sees, and that see everything.
    """
    queries, keys = blocks.means(q[0]), blocks.means(k[0])
    keys = keys - keys.mean(1, keepdim=True)
    # Scores are powers of 2, for which the rule's small constant is meant.
    unit = scale * log2(e)
    scores = queries @ keys.mT * unit
    if keep:
        ranked = scores.clone()
        ranked[..., :sinks] = -torch.inf
        seen = ranked >= ranked.topk(keep, dim=-1).values[..., -1:]
    else:
        spread = queries.square() @ keys.square().mean(1)[..., None]
        seen = scores > tau * (spread * unit**2 + 1e-6).sqrt()
    places = torch.arange(scores.shape[-1])
    seen |= (places[:, None] - places).abs() <= 1
    seen[..., :sinks] = True
    seen[:, :sinks] = True
    return seen
