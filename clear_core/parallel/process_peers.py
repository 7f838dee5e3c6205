"""Ranks that are processes: torch.distributed, on one machine or several."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..number_checks import check_number
from .peers import TIMEOUT, Peers, PeersError, Transfer, empty_like, is_empty


class ProcessPeers(Peers):
    """The processes of a group of torch.distributed, with gloo or nccl.

    All processes of the group make theirs at the same time. But for that, nothing but messages between two ranks is
    used: their sizes may differ, which gloo's and nccl's own gathering refuses. With gloo, tensors on a card travel
    through the processor's memory.

    A process that has ended, or that does not answer in time, ends the wait of the others with a PeersError; after
    that the object is used up, and the group with it. With nccl the device waits, not the process: there torch's own
    watchdog ends the process after the group's timeout. Each process has chosen its card (``torch.cuda.set_device``)
    before.

    Args:
        group: Of ``torch.distributed``; None is the default group.
        timeout: Seconds that one wait may take with gloo, above 0.

    Raises:
        ValueError: There is no such group, or the timeout is out of its range.
        PeersError: Not all processes of the group came.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = TIMEOUT) -> None:
        check_number("timeout", timeout, 0, above=True)
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "ProcessPeers needs a group of processes; call torch.distributed.init_process_group first."
            )
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        if self.rank < 0:
            raise ValueError("this process is not in the group that ProcessPeers was given.")
        self._group = group
        self._timeout = timeout
        self._by_gloo = dist.get_backend(group) == "gloo"
        self._exchanges = 0
        self._failure: BaseException | None = None
        # With nccl the first call of a group must be one in which all ranks take part.
        meeting = dist.barrier(group, async_op=True)
        if meeting is not None:
            self.finish([meeting], "all others")

    def abort(self, error: BaseException) -> None:
        """This rank has failed. Nothing can be sent to tell it: the others end when this process does, or in time."""
        self._failure = self._failure or error

    def finish(self, works: Sequence[Any], others: str) -> None:
        """Waits for messages.

        Args:
            works: Of torch.distributed.
            others: Whose they are, as the error names them.
        """
        until = time.monotonic() + self._timeout
        try:
            for work in works:
                # With a time limit nccl would hold up the process.
                if self._by_gloo:
                    work.wait(timedelta(seconds=max(0.001, until - time.monotonic())))
                else:
                    work.wait()
        except RuntimeError as error:
            raise self._in_vain(others, error) from error

    def _in_vain(self, others: str, error: RuntimeError) -> PeersError:
        self.abort(error)
        return PeersError(
            f"rank {self.rank} of {self.size} waited in vain for {others}: a process has ended, or did not answer "
            f"within {self._timeout:g} s."
        )

    def _start(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        if self._failure is not None:
            raise PeersError(f"rank {self.rank} has stopped after {type(self._failure).__name__}.") from self._failure
        # Gloo keeps messages of different exchanges apart by it.
        tag = self._exchanges
        self._exchanges = (tag + 1) % 2**20
        device = torch.device("cpu") if self._by_gloo else like.device
        arriving = {sender: empty_like(shape, like, device) for sender, shape in expects.items()}
        leaving = {receiver: tensor.to(device).contiguous() for receiver, tensor in sends.items()}
        operations = [
            dist.P2POp(dist.isend, _bytes(tensor), self._global(receiver), self._group, tag)
            for receiver, tensor in leaving.items()
        ]
        operations += [
            dist.P2POp(dist.irecv, _bytes(tensor), self._global(sender), self._group, tag)
            for sender, tensor in arriving.items()
            if not is_empty(tensor.shape)
        ]
        others = _named({*leaving, *arriving})
        try:
            works = dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:
            raise self._in_vain(others, error) from error
        return _InFlight(self, works, others, arriving, leaving, like.device)

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


class _InFlight(Transfer):
    """Messages of one exchange, and the memory that they are read from and written to."""

    def __init__(
        self,
        peers: ProcessPeers,
        works: Sequence[Any],
        others: str,
        arriving: dict[int, Tensor],
        leaving: dict[int, Tensor],
        device: torch.device,
    ) -> None:
        self._peers = peers
        self._works = works
        self._others = others
        self._arriving = arriving
        self._leaving = leaving
        self._device = device

    def wait(self) -> dict[int, Tensor]:
        self._peers.finish(self._works, self._others)
        self._leaving.clear()
        return {sender: tensor.to(self._device) for sender, tensor in self._arriving.items()}


def _named(ranks: set[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as bytes, which every kind of group can send; the same memory."""
    return tensor.view(-1).view(torch.uint8)
