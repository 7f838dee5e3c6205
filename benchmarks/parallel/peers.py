"""Peers that take an attention call apart: its transfers without computing, and its computing without transfers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from clear_core.parallel import Peers, Transfer


class RecordedPeers(Peers):
    """Does what another one does, and keeps what was sent, to send it again with nothing computed in between."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers.rank, peers.size)
        self._peers = peers
        self._moves: list[Callable[[dict[int, Transfer]], None]] = []
        self._exchanges = 0

    def abort(self, error: BaseException) -> None:
        self._peers.abort(error)

    def _start(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        number, self._exchanges = self._exchanges, self._exchanges + 1
        sends, expects, empty = dict(sends), dict(expects), like.new_empty(0)

        def start(under_way: dict[int, Transfer]) -> None:
            under_way[number] = self._peers.exchange(sends, expects, empty)

        def wait(under_way: dict[int, Transfer]) -> None:
            under_way.pop(number).wait()

        self._moves.append(start)
        return _Noted(self._peers.exchange(sends, expects, like), lambda: self._moves.append(wait))

    def replay(self) -> None:
        """The same exchanges, begun and waited for in the same order."""
        under_way: dict[int, Transfer] = {}
        for move in self._moves:
            move(under_way)


class _Noted(Transfer):
    def __init__(self, transfer: Transfer, note: Callable[[], None]) -> None:
        self._transfer = transfer
        self._note = note

    def wait(self) -> dict[int, Tensor]:
        self._note()
        return self._transfer.wait()


class SilentPeers(Peers):
    """Sends nothing; what should arrive is zeros, which lie there from the second call on."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._kept: dict[tuple[int, tuple[int, ...], torch.dtype], Tensor] = {}

    def abort(self, error: BaseException) -> None:
        pass

    def _start(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        arrived: dict[int, Tensor] = {}
        for sender, shape in expects.items():
            key = sender, tuple(shape), like.dtype
            if key not in self._kept:
                self._kept[key] = like.new_zeros(tuple(shape))
            arrived[sender] = self._kept[key]
        return _Arrived(arrived)


class _Arrived(Transfer):
    def __init__(self, arrived: dict[int, Tensor]) -> None:
        self._arrived = arrived

    def wait(self) -> dict[int, Tensor]:
        return dict(self._arrived)
