"""Which sizes of the attentions have equal pairs on a grid."""

from __future__ import annotations

from dataclasses import dataclass

from clear_core import SequenceLayout

from .attention import Attention, pairs_with
from .registry import KINDS, Grid
from .swin import Swin

GRIDS = ((32, 32), (24, 24), (16, 16))
"""The tiny FLUX's, of 512, 384 and 256 px."""

TARGETS: dict[Grid, tuple[int, ...]] = {(32, 32): (16, 8, 4), (24, 24): (12, 6, 4), (16, 16): (8, 4)}
"""Swin windows that the table matches: they divide the grid."""


@dataclass(frozen=True)
class Match:
    """The nearest size of one kind.

    Attributes:
        size: In tokens: stride, radius, or side of a square.
        attention: Of that size.
        keys: Pairs of an image query with image or compressed keys, on average; agents' own pairs count as its.
    """

    size: int
    attention: Attention
    keys: float


def image_keys(attention: Attention, layout: SequenceLayout, block: int = 0) -> float:
    """Pairs beside those of text and reference tokens, for each image query."""
    return (attention.pairs(layout, block) - pairs_with(layout, 0)) / layout.image


def nearest(kind: str, layout: SequenceLayout, pairs: int) -> Match:
    """The size of a kind whose pairs in an unshifted block are nearest to a number; the smaller one of two.

    Args:
        kind: A name in the registry.
        pairs: Of one block and head, text included.

    Raises:
        ValueError: The kind is unknown, or has no size to choose.
    """
    if kind not in KINDS or not KINDS[kind].sizes(layout.grid):
        sized = ", ".join(name for name, one in KINDS.items() if one.sizes(layout.grid))
        raise ValueError(f"the kind of attention is {kind!r}; expected one that has sizes: {sized}.")
    found = [(size, KINDS[kind].make(size)) for size in KINDS[kind].sizes(layout.grid)]
    size, best = min(found, key=lambda one: abs(one[1].pairs(layout) - pairs))
    return Match(size, best, image_keys(best, layout))


def matches(layout: SequenceLayout, window: int) -> dict[str, Match]:
    """The nearest size of every kind to Swin windows of a side, by kind."""
    target = Swin(window).pairs(layout)
    return {kind: nearest(kind, layout, target) for kind, one in KINDS.items() if one.sizes(layout.grid)}
