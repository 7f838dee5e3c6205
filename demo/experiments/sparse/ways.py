"""Ways to attend to a part of the keys: each computes the attention, and says which keys it sees exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.cost import clear_pairs
from clear_core.inspection.locality.attentions import BlockTokens

from ..baselines.neighbourhood import Neighbourhood
from .blocks import Blocks, choice
from .kitchen import kitchen


@dataclass(frozen=True)
class Way(ABC):
    """How image queries attend; text queries see everything, except where a way says otherwise.

    Attributes:
        radius: Of the window that has as many keys; 0 if the way is not matched with one.
    """

    radius: int

    @property
    @abstractmethod
    def name(self) -> str:
        """A row's name."""

    @property
    def distilled(self) -> ClearSpec | None:
        """The window whose distilled weights the model has; None is the model as it is."""
        return None

    @abstractmethod
    def attend(self, tokens: BlockTokens) -> Tensor:
        """(1, heads, L, D): the attention of one block."""

    @abstractmethod
    def seen(self, tokens: BlockTokens) -> Tensor:
        """Which keys the image queries see exactly: bool (heads or 1, N, L)."""

    def averages(self, tokens: BlockTokens) -> float:
        """Mean number of keys that stand for several tokens, over image queries and heads."""
        return 0.0

    def fitted(self, probed: Sequence[BlockTokens]) -> Way:
        """The way with about as many keys as the window of its radius, on the tokens of a dense run."""
        return self


def keys_of(layout: SequenceLayout, spec: ClearSpec) -> float:
    """Mean number of keys of an image query, text and pooled ones among them."""
    return (clear_pairs(layout, spec) - (layout.length - layout.image) * layout.length) / layout.image


@dataclass(frozen=True)
class Dense(Way):
    """Everything is seen."""

    radius: int = 0

    @property
    def name(self) -> str:
        return "dense"

    def attend(self, tokens: BlockTokens) -> Tensor:
        return tokens.dense()

    def seen(self, tokens: BlockTokens) -> Tensor:
        return torch.ones(1, tokens.layout.image, tokens.layout.length, dtype=torch.bool)


@dataclass(frozen=True)
class Window(Way):
    """CLEAR's circle.

    Attributes:
        cells: Side in tokens of the cells of the overview; 0 without one.
        on_distilled: Whether the weights are those distilled for the window.
    """

    cells: int = 0
    on_distilled: bool = False

    @property
    def spec(self) -> ClearSpec:
        return ClearSpec(self.radius, self.cells or 1, self.cells > 0)

    @property
    def distilled(self) -> ClearSpec | None:
        return self.spec if self.on_distilled else None

    @property
    def name(self) -> str:
        return f"CLEAR, {self.spec}"

    def attend(self, tokens: BlockTokens) -> Tensor:
        return tokens.windowed(self.spec)

    def seen(self, tokens: BlockTokens) -> Tensor:
        layout = tokens.layout
        return image_rows_mask(range(layout.grid[0]), layout, ClearSpec(self.radius), tokens.q.device)[None]

    def averages(self, tokens: BlockTokens) -> float:
        return keys_of(tokens.layout, self.spec) - keys_of(tokens.layout, ClearSpec(self.radius))


@dataclass(frozen=True)
class Square(Way):
    """NATTEN's neighbourhood, with text; ``na2d`` of comfy-kitchen is the same without text.

    Attributes:
        side: Of the square in tokens, odd; 1 until it is fitted.
    """

    side: int = 1

    @property
    def name(self) -> str:
        return f"square, {self.side} x {self.side}"

    def attend(self, tokens: BlockTokens) -> Tensor:
        return Neighbourhood(self.side)(tokens.q, tokens.k, tokens.v, tokens.layout)

    def seen(self, tokens: BlockTokens) -> Tensor:
        return Neighbourhood(self.side).seen(tokens.layout)[None]

    def fitted(self, probed: Sequence[BlockTokens]) -> Way:
        layout = probed[0].layout
        wanted = keys_of(layout, ClearSpec(self.radius)) - layout.text
        sides = range(1, min(layout.grid) + 1, 2)
        return replace(self, side=min(sides, key=lambda side: abs(side**2 - wanted)))


@dataclass(frozen=True)
class Chosen(Way):
    """Blocks of 64 keys chosen for blocks of 64 queries: comfy-kitchen's ``sol_attn``.

    Attributes:
        keep: Number of blocks of the highest score; 0 chooses by ``tau``, or is to be fitted if there is a radius.
        tau: Threshold in standard deviations.
        text: Whether text is always seen, and its queries see everything ("sinks"). The host's node leaves this to one
            family of video models: on others text competes as any block.
        tail: Whether each other block is seen as one average.
        tiles: Whether blocks are squares of 8 x 8 tokens instead of 64 consecutive ones.
    """

    radius: int = 0
    keep: int = 0
    tau: float = 1.3
    text: bool = True
    tail: bool = True
    tiles: bool = False

    @property
    def name(self) -> str:
        blocks = f"{self.keep} best block{'s' if self.keep > 1 else ''}" if self.keep else f"tau {self.tau:g}"
        parts = ["sol_attn", blocks]
        parts += ["8 x 8 tiles"] if self.tiles else []
        parts += [] if self.text else ["as the node calls it"]
        return ", ".join(parts + ([] if self.tail else ["no averages"]))

    def blocks(self, layout: SequenceLayout) -> Blocks:
        return Blocks.of(layout, self.tiles)

    def choice(self, tokens: BlockTokens) -> Tensor:
        """bool (heads, n, n)."""
        blocks = self.blocks(tokens.layout)
        sinks = blocks.text if self.text else 0
        return choice(tokens.q, tokens.k, tokens.scale, blocks, keep=self.keep, tau=self.tau, sinks=sinks)

    def attend(self, tokens: BlockTokens) -> Tensor:
        blocks = self.blocks(tokens.layout)
        sinks = [0, blocks.text if self.text else 0]
        q, k, v = (
            blocks.gathered(each[0]).flatten(1, 2).transpose(0, 1)[None] for each in (tokens.q, tokens.k, tokens.v)
        )
        out = kitchen().sol_attn(
            q,
            k,
            v,
            tau=self.tau,
            scale=tokens.scale,
            sink_blocks=sinks,
            sink_q=sinks,
            topk_ratio=self.keep / (len(blocks.tokens) - sinks[1]),
            tail=self.tail,
            block_len=blocks.lengths.int(),
        )
        live = blocks.tokens.flatten() >= 0
        result = torch.empty_like(tokens.v)
        result[0][:, blocks.tokens.flatten()[live]] = out[0, live].transpose(0, 1)
        return result

    def seen(self, tokens: BlockTokens) -> Tensor:
        block_of = self.blocks(tokens.layout).block_of
        return self.choice(tokens)[:, block_of[tokens.layout.image_slice]][..., block_of]

    def averages(self, tokens: BlockTokens) -> float:
        found = self.blocks(tokens.layout).averages_per_query(self.choice(tokens), tokens.layout)
        return found if self.tail else 0.0

    def fitted(self, probed: Sequence[BlockTokens]) -> Way:
        if not self.radius:
            return self
        layout = probed[0].layout
        wanted, blocks = keys_of(layout, ClearSpec(self.radius)), self.blocks(layout)

        def away(keep: int) -> float:
            way = replace(self, keep=keep)
            found = [blocks.keys_per_query(way.choice(tokens), layout) for tokens in probed]
            return abs(sum(found) / len(found) - wanted)

        most = len(blocks.tokens) - (blocks.text if self.text else 0) - 1
        return replace(self, keep=min(range(1, most + 1), key=away))
