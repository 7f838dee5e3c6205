"""Work on a CPU in pieces, each done by one thread."""

import threading
from functools import partial

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import workers
from clear_core.attention.backends import gather

THREADS = 3


class InterruptError(Exception):
    pass


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)
    workers._pool.cache_clear()


def note(seen, barrier, on_chunk):
    barrier.wait(30)
    seen.append((threading.current_thread().name, torch.get_num_threads(), torch.is_inference_mode_enabled()))
    on_chunk()


@pytest.mark.parametrize("inference", [False, True])
def test_each_piece_has_one_thread_and_the_others_keep_theirs(inference):
    seen, places, barrier = [], [], threading.Barrier(THREADS)
    with torch.inference_mode(inference):
        pieces = [partial(note, seen, barrier)] * THREADS
        workers.run_pieces(pieces, lambda: places.append(threading.current_thread()))
    assert {number for _, number, _ in seen} == {1} and {mode for *_, mode in seen} == {inference}
    assert len({name for name, *_ in seen}) == THREADS and set(places) == {threading.current_thread()}
    assert torch.get_num_threads() == THREADS
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [THREADS]


def test_an_error_in_a_piece_ends_the_others_and_is_raised():
    chunks = []

    def fails(on_chunk):
        on_chunk()
        raise InterruptError("in a piece")

    def long(on_chunk):
        for _ in range(10**6):
            on_chunk()
            chunks.append(1)
        raise AssertionError("it went on")

    with pytest.raises(InterruptError, match="in a piece"):
        workers.run_pieces([long, fails, long, long, long], lambda: None)
    assert len(chunks) < 10**6


def test_an_interrupt_ends_all_pieces_before_it_is_raised():
    running = []

    def piece(on_chunk):
        running.append(1)
        try:
            while True:
                on_chunk()
        finally:
            running.pop()

    def interrupt():
        raise InterruptError

    with pytest.raises(InterruptError):
        workers.run_pieces([piece] * 4, interrupt)
    assert not running


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("spec", [ClearSpec(6), ClearSpec(5, 2)], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 5, 24])
def test_results_are_those_of_one_thread(heads, spec, return_lse):
    layout = SequenceLayout(21, (33, 40), 4)
    generator = torch.Generator().manual_seed(heads)
    q, k, v = torch.randn(3, 2, heads, layout.length, 16, generator=generator).unbind()
    bias = torch.randn(2, heads, layout.length, layout.text, generator=generator)
    options = {"grid": layout.grid, "spec": spec, "reference_tokens": 4, "bias": bias, "return_lse": return_lse}
    found = clear_attention(q, k, v, backend="gather", **options)
    torch.set_num_threads(1)
    alone = clear_attention(q, k, v, backend="gather", **options)
    for one, other in zip(found, alone, strict=True) if return_lse else [(found, alone)]:
        assert torch.equal(one, other)


def test_gradients_are_not_left_to_other_threads(monkeypatch):
    monkeypatch.setattr(workers, "_pool", None)
    layout = SequenceLayout(3, (12, 12))
    q, k, v = torch.randn(3, 1, 4, layout.length, 16, requires_grad=True).unbind()
    clear_attention(q, k, v, grid=layout.grid, spec=ClearSpec(3), backend="gather").sum().backward()
    assert gather.workers_of(torch.device("cpu"), needs_grad=True) == 1
    monkeypatch.undo()
