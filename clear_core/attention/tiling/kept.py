"""Results that are made once and kept, bounded by their bytes and safe between threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What can be kept: a value that knows its memory in bytes and never changes."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class KeptValues(Generic[Value]):
    """Values by key; those asked for least recently go first if there are more bytes than allowed.

    The newest value stays even if it is too large alone: one call asks for it many times.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``; two threads that ask for a new one at once may both make it, and get the same one."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        # Made outside the lock: other threads go on with what is there.
        made = make()
        with self._lock:
            value = self._values.setdefault(key, made)
            self._values.move_to_end(key)
            while len(self._values) > 1 and self.nbytes > self.most_bytes:
                self._values.popitem(last=False)
            return value

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(value.nbytes for value in self._values.values())

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
