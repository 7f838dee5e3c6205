"""Work on a CPU in pieces that wait for nobody.

Torch splits each operation among its threads and waits for the slowest. If other programs keep a core busy, every one
of the many operations of gathered attention waits, and the threads that are done spin meanwhile: on a busy machine that
took five times the time of a single thread. Here each thread does whole pieces, and takes the next one when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from threading import Barrier, Event

import torch

OnChunk = Callable[[], None]
Piece = Callable[[OnChunk], None]
"""A piece of work, given what it calls after each of its chunks; what that raises ends the piece."""


class _StoppedError(Exception):
    """Another piece failed, or the caller's ``on_chunk`` raised."""


def workers_of(device: torch.device, needs_grad: bool) -> int:
    """Number of pieces that run at once; 1 if pieces have no use: on a card, or if autograd watches."""
    return torch.get_num_threads() if device.type == "cpu" and not needs_grad else 1


def run_pieces(pieces: Sequence[Piece], on_chunk: OnChunk) -> None:
    """Runs all pieces, in other threads if there are several.

    Args:
        pieces: Each writes to a place of its own.
        on_chunk: Called in this thread after each chunk of any piece. An exception raised in it, or in a piece, ends
            the others after their chunk and is raised here.
    """
    if len(pieces) == 1:
        pieces[0](on_chunk)
        return
    stop = Event()
    # One item for each chunk, None for each piece that has ended.
    done: SimpleQueue[bool] = SimpleQueue()
    is_inference = torch.is_inference_mode_enabled()

    def chunk_done() -> None:
        done.put(False)
        if stop.is_set():
            raise _StoppedError

    def work(piece: Piece) -> None:
        try:
            # Both are per thread.
            with torch.inference_mode(is_inference), torch.set_grad_enabled(False):
                if not stop.is_set():
                    piece(chunk_done)
        except BaseException:
            stop.set()
            raise
        finally:
            done.put(True)

    futures = [_pool(torch.get_num_threads()).submit(work, piece) for piece in pieces]
    try:
        error = _wait(len(pieces), done, on_chunk, stop)
    except BaseException:  # an interrupt of this thread while it waits
        stop.set()
        raise
    errors = [found for found in map(Future[None].exception, futures) if not isinstance(found, _StoppedError)]
    error = error or next((found for found in errors if found is not None), None)
    if error is not None:
        raise error


def _wait(pieces: int, done: SimpleQueue[bool], on_chunk: OnChunk, stop: Event) -> BaseException | None:
    """Waits for all pieces; what ``on_chunk`` raised."""
    error: BaseException | None = None
    while pieces:
        if done.get():
            pieces -= 1
        elif error is None and not stop.is_set():
            try:
                on_chunk()
            except BaseException as raised:
                error = raised
                stop.set()
    return error


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone: each operation in them is done by one thread."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        # A thread that has never asked takes the number that was set last, wherever, at its first operation.
        torch.get_num_threads()
        started.wait()

    pool = ThreadPoolExecutor(threads, "clear-attention", start)
    for _ in range(threads):
        pool.submit(_nothing)
    started.wait()
    # The number is each thread's own, but threads that ask for the first time get the last one that was set.
    torch.set_num_threads(threads)
    return pool


def _nothing() -> None:
    """Starts a thread."""
