"""Which blocks of a model keep full attention, from what a person writes."""

from __future__ import annotations

import re

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
