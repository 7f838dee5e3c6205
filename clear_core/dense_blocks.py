"""Which blocks of a model keep dense attention: from what a person writes, and by what windows in them cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from .number_checks import check_number
from .wording import quoted

BlockId = tuple[str, int]
"""("double" or "single", index from 0), a block of FLUX."""

_KINDS = {"d": "double", "s": "single"}
_PIECE = re.compile(r"([ds]?)\s*([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?", re.IGNORECASE)


def parse_dense_blocks(text: str, num_double: int, num_single: int) -> frozenset[BlockId]:
    """The blocks that a list names.

    Args:
        text: Numbers and ranges (both ends included) with commas between them. ``0, 1, 54-56`` counts all blocks, the
            double ones first; ``d0-3, s35-37`` counts double and single blocks apart; both forms mix. Empty: none.
        num_double: Double blocks of the model (FLUX.1: 19).
        num_single: Single blocks (38).

    Raises:
        ValueError: A piece is neither a number nor a range, or names blocks that the model lacks.
    """
    has = f"this model has {num_double} double and {num_single} single blocks"
    every = [("double", i) for i in range(num_double)] + [("single", i) for i in range(num_single)]
    named: set[BlockId] = set()
    for piece in filter(None, (part.strip() for part in text.split(","))):
        match = _PIECE.fullmatch(piece)
        if match is None:
            raise ValueError(
                f"dense_blocks has {quoted(piece)}; expected a block or a range such as 3, 54-56, d0-3 or s35 ({has})."
            )
        kind, first, last = match[1].lower(), int(match[2]), int(match[3] or match[2])
        blocks = [block for block in every if block[0] == _KINDS[kind]] if kind else every
        if not first <= last < len(blocks):
            raise ValueError(
                f"dense_blocks has {quoted(piece)}, but {has}; count from 0, and write the smaller number of a range "
                "first."
            )
        named.update(blocks[first : last + 1])
    return frozenset(named)


def dense_blocks_text(blocks: Iterable[BlockId]) -> str:
    """Blocks in the form that :func:`parse_dense_blocks` takes, counted apart: ``d0-3, s35``; empty for none."""
    chosen, pieces = set(blocks), list[str]()
    for letter, kind in _KINDS.items():
        indices = sorted(index for stream, index in chosen if stream == kind)
        # Neighbours have the same distance from their place in the list.
        for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
            first, *rest = (index for _, index in run)
            pieces.append(f"{letter}{first}-{rest[-1]}" if rest else f"{letter}{first}")
    return ", ".join(pieces)


def costliest_blocks(
    costs: Mapping[BlockId, float], *, count: int | None = None, share: float | None = None
) -> tuple[BlockId, ...]:
    """The blocks that should keep dense attention: those in which windows cost most, the costliest first.

    It takes the costs as if they could be added, which they cannot exactly: measure what the choice comes to.

    Args:
        costs: What windows in this block alone cost, 0 or more, by block.
        count: How many blocks, 0 to all of them.
        share: Instead of a count: the fewest blocks that hold this share of all costs, 0 to 1.

    Raises:
        ValueError: Not exactly one of count and share is given, or it is out of range.
    """
    if (count is None) == (share is None):
        raise ValueError(f"count is {quoted(count)} and share {quoted(share)}; expected exactly one of the two.")
    # Of equal costs the earlier block comes first, so that the same numbers give the same choice.
    order = sorted(costs, key=lambda block: (-costs[block], block))
    if count is not None:
        check_number("count", count, 0, len(order), whole=True)
        return tuple(order[:count])
    assert share is not None
    check_number("share", share, 0, 1)
    wanted, total = share * sum(costs.values()), 0.0
    chosen: list[BlockId] = []
    for block in order:
        # A block that costs nothing mends nothing; the small allowance is for the rounding of the sum.
        if total >= wanted - 1e-12 * wanted or costs[block] == 0:
            break
        chosen.append(block)
        total += costs[block]
    return tuple(chosen)
