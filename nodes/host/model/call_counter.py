"""Counts what the running sampling computes: the attention override writes, the stopwatch reads."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any

from ....clear_core.cost import clear_pairs

# The counts are the same for all blocks of a call and for all steps.
window_pairs_of = lru_cache(maxsize=64)(clear_pairs)


@dataclass
class CallCounter:
    """Counts over the model's calls in one sampling.

    Attributes:
        calls: Calls of the model.
        tokens: Tokens of all sequences.
        pairs: Query-key pairs of all sequences, over all blocks.
        text: What the last call computed, for people.
    """

    calls: int = 0
    tokens: int = 0
    pairs: int = 0
    text: str = ""
    lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def add(self, sequences: int, tokens: int, pairs: int, text: str) -> None:
        """Add one call.

        Args:
            sequences: In the batch of this call.
            tokens: Of one sequence.
            pairs: Of one sequence, over all blocks.
            text: What it computed, for people.
        """
        with self.lock:  # Tiles may run on several devices at once.
            self.calls += 1
            self.tokens += sequences * tokens
            self.pairs += sequences * pairs
            self.text = text


# The host's threads for other devices start without a context, and count only if they are given one.
_current: ContextVar[CallCounter | None] = ContextVar("clear_call_counter", default=None)


def current_counter() -> CallCounter | None:
    """The counter of the sampling that this call of the model belongs to, or None."""
    return _current.get()


def start_counting(counter: CallCounter) -> Token[CallCounter | None]:
    """Make ``counter`` the current one, until :func:`stop_counting` gets the token."""
    return _current.set(counter)


def stop_counting(token: Token[CallCounter | None]) -> None:
    """Restore the counter that was current before."""
    _current.reset(token)
