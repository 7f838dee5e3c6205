"""Ranks that are threads of one process, one for each of its devices: nothing to install, on any system."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TypeVar

import torch
from torch import Tensor

from ..number_checks import check_number
from .peers import TIMEOUT, Peers, PeersError, Transfer, empty_like, is_empty

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Message:
    """A tensor, and on a card the moment from which it may be read."""

    tensor: Tensor
    ready: torch.cuda.Event | None


# Sender, receiver and number of the exchange.
_Address = tuple[int, int, int]


class _Meeting:
    """What the threads share: messages that lie ready, and the first failure."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.changed = Condition()
        self.messages: dict[_Address, _Message] = {}
        self.failure: tuple[int, BaseException] | None = None
        self.ended: set[int] = set()

    def check(self) -> None:
        """Raises a PeersError if a rank has failed."""
        if self.failure is not None:
            rank, error = self.failure
            raise PeersError(f"rank {rank} has failed ({type(error).__name__}), so the others stop.") from error

    def put(self, messages: dict[_Address, _Message]) -> None:
        with self.changed:
            self.check()
            self.messages.update(messages)
            self.changed.notify_all()

    def take(self, addresses: list[_Address]) -> list[_Message]:
        with self.changed:

            def missing() -> list[int]:
                return [one[0] for one in addresses if one not in self.messages]

            in_time = self.changed.wait_for(
                lambda: self.failure is not None or not missing() or self.ended.intersection(missing()), self.timeout
            )
            self.check()
            if missing():
                waited = f"{self.timeout:g} s in vain" if not in_time else "in vain"
                ended = ", which has ended" if in_time else ""
                raise PeersError(
                    f"rank {addresses[0][1]} waited {waited} for rank {', '.join(map(str, missing()))}{ended}; do all "
                    "threads make the same calls?"
                )
            return [self.messages.pop(one) for one in addresses]

    def end(self, rank: int) -> None:
        with self.changed:
            self.ended.add(rank)
            self.changed.notify_all()

    def fail(self, rank: int, error: BaseException) -> None:
        with self.changed:
            if self.failure is None:
                self.failure = rank, error
                self.messages.clear()
            self.changed.notify_all()


class ThreadPeers(Peers):
    """The ranks of one process, one in each thread; their tensors may lie on devices of their own.

    Made by :meth:`make`. After a failure all of them are used up.
    """

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        super().__init__(rank, size)
        self._meeting = meeting
        self._exchanges = 0

    @classmethod
    def make(cls, n: int, timeout: float = TIMEOUT) -> tuple[ThreadPeers, ...]:
        """One for each of ``n`` threads, by rank.

        Args:
            timeout: Seconds that a thread waits for the others, above 0.

        Raises:
            ValueError: A number is out of its range.
        """
        check_number("n", n, 1, whole=True)
        check_number("timeout", timeout, 0, above=True)
        meeting = _Meeting(timeout)
        return tuple(cls(rank, n, meeting) for rank in range(n))

    def abort(self, error: BaseException) -> None:
        """This rank has failed: whoever waits, or will wait, gets a PeersError at once."""
        self._meeting.fail(self.rank, error)

    def end(self) -> None:
        """This rank has done all of its work: whoever still waits for it gets a PeersError at once."""
        self._meeting.end(self.rank)

    @property
    def failure(self) -> BaseException | None:
        """The first error of any rank."""
        return None if self._meeting.failure is None else self._meeting.failure[1]

    def _start(self, sends: Mapping[int, Tensor], expects: Mapping[int, Sequence[int]], like: Tensor) -> Transfer:
        number = self._exchanges
        self._exchanges += 1
        self._meeting.put({(self.rank, to, number): _Message(one, _ready(one)) for to, one in sends.items()})
        return _Awaited(self._meeting, self.rank, number, expects, like)


class _Awaited(Transfer):
    """Messages of one exchange."""

    def __init__(
        self, meeting: _Meeting, rank: int, number: int, expects: Mapping[int, Sequence[int]], like: Tensor
    ) -> None:
        self._meeting = meeting
        self._addresses = [(sender, rank, number) for sender, shape in expects.items() if not is_empty(shape)]
        self._shapes = {sender: tuple(shape) for sender, shape in expects.items()}
        self._like = like

    def wait(self) -> dict[int, Tensor]:
        arrived = {sender: empty_like(shape, self._like) for sender, shape in self._shapes.items() if is_empty(shape)}
        messages = self._meeting.take(self._addresses)
        for (sender, receiver, _), message in zip(self._addresses, messages, strict=True):
            if message.tensor.shape != self._shapes[sender] or message.tensor.dtype != self._like.dtype:
                raise PeersError(
                    f"rank {sender} sent {message.tensor.dtype} {tuple(message.tensor.shape)}, but rank {receiver} "
                    f"expects {self._like.dtype} {self._shapes[sender]}; do all ranks make the same call?"
                )
            arrived[sender] = _on_device(message, self._like.device)
        return arrived


def _ready(tensor: Tensor) -> torch.cuda.Event | None:
    """The moment at which a card has computed a tensor; None if there is nothing to wait for."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def _on_device(message: _Message, device: torch.device) -> Tensor:
    """The tensor where it is wanted; on the device where it was made it is not copied."""
    tensor = message.tensor
    if message.ready is not None:
        # Copies between cards run in the stream of the card they come from. The sender's allocator must not give the
        # memory away before this thread's stream has read it.
        reading = torch.cuda.current_stream(tensor.device)
        reading.wait_event(message.ready)
        tensor.record_stream(reading)
    return tensor.to(device)


def run_together(peers: Sequence[ThreadPeers], work: Callable[[ThreadPeers], _Result]) -> list[_Result]:
    """Runs the ranks side by side: rank 0 in this thread, each other one in a thread of its own.

    The first error of any rank ends the others at their next exchange, and is raised here, once. Gradient mode,
    inference mode and context variables are those of this thread.

    Args:
        peers: All of :meth:`ThreadPeers.make`.
        work: Called with each of them.

    Returns:
        What it returned, by rank.
    """
    results: dict[int, _Result] = {}
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def one(own: ThreadPeers) -> None:
        try:
            # Both are per thread.
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                results[own.rank] = work(own)
            own.end()
        except BaseException as error:
            own.abort(error)

    # A context can be entered by one thread at a time.
    threads = [Thread(target=contextvars.copy_context().run, args=(one, own), daemon=True) for own in peers[1:]]
    for thread in threads:
        thread.start()
    one(peers[0])
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interrupt of this thread while it waits
        peers[0].abort(error)
        raise
    failure = peers[0].failure
    if failure is not None:
        raise failure
    return [results[own.rank] for own in peers]
