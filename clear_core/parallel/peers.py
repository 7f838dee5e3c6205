"""What ranks do for each other: send tensors. How they travel is left to processes or threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TIMEOUT = 600.0
"""Seconds that a rank waits for the others, unless it is told otherwise: more than a kernel takes to compile."""


class PeersError(RuntimeError):
    """Another rank has failed, has ended, or has not answered in time."""


class Transfer(ABC):
    """Tensors on their way."""

    @abstractmethod
    def wait(self) -> dict[int, Tensor]:
        """By sender: what has arrived, to be read only. Called once.

        Raises:
            PeersError: It will not arrive.
        """


class Gathering(Transfer):
    """An all-gather on its way: the own part is there already."""

    def __init__(self, transfer: Transfer, rank: int, own: Tensor) -> None:
        self._transfer = transfer
        self._rank = rank
        self._own = own

    def wait(self) -> dict[int, Tensor]:
        """By rank, in the order of ranks."""
        parts = {self._rank: self._own, **self._transfer.wait()}
        return {rank: parts[rank] for rank in sorted(parts)}


class Peers(ABC):
    """The ranks that compute one picture together, as one of them sees them.

    All ranks make the same exchanges in the same order; one that has nothing to send or to receive takes part with
    empty mappings. One object serves one thread.

    Attributes:
        rank: Of this one, 0 to ``size - 1``.
        size: Number of ranks.
        bytes_sent: By this rank to others since it was made, in bytes: the elements alone, no headers.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.bytes_sent = 0

    def exchange(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        """Starts to send and to receive, at most one tensor for each pair of ranks; it does not wait.

        Args:
            sends: By receiver. They belong to the exchange: nobody may change them from here on.
            expects: By sender: the shape. Sender and receiver know it without asking.
            like: Has the dtype of all of them, and the device on which they are to arrive.

        Raises:
            PeersError: A rank has failed before.
        """
        sends = {receiver: tensor for receiver, tensor in sends.items() if tensor.numel()}
        self.bytes_sent += sum(tensor.numel() * tensor.element_size() for tensor in sends.values())
        return self._start(sends, expects, like)

    def all_gather(self, tensor: Tensor, shapes: Sequence[Sequence[int]]) -> Transfer:
        """Starts to send a tensor to all others, and to receive theirs.

        Args:
            tensor: The own part. It belongs to the exchange: nobody may change it from here on.
            shapes: Of each rank's part; they may differ.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        transfer = self.exchange(dict.fromkeys(others, tensor), {rank: shapes[rank] for rank in others}, tensor)
        return Gathering(transfer, self.rank, tensor)

    @abstractmethod
    def abort(self, error: BaseException) -> None:
        """This rank has failed and will not take part any more: the others shall not wait for it."""

    @abstractmethod
    def _start(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        """As :meth:`exchange`. No tensor in ``sends`` is empty, but shapes in ``expects`` may be."""


def is_empty(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape has no elements; such tensors do not travel."""
    return 0 in shape


def empty_like(shape: Sequence[int], like: Tensor, device: torch.device | None = None) -> Tensor:
    """Uninitialised, in the dtype of ``like``, on its device unless another one is named."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device if device is None else device)
