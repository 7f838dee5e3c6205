"""Ranks that are threads: the whole picture's result in strips and by heads."""

import contextvars
import threading
from dataclasses import replace

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.parallel import (
    ThreadPeers,
    attend_by_heads,
    clear_attention_strip,
    heads_traffic,
    run_together,
    thread_peers,
)
from tests.support.strip_cases import StripCase

CASES = [StripCase.draw(seed, ranks) for ranks in (1, 2, 3, 4, 8) for seed in range(24)]


def run(case: StripCase, **options) -> None:
    peers = ThreadPeers.make(case.ranks, timeout=60)
    results = run_together(peers, lambda own: case.run(own, **options))
    case.check(results, [own.bytes_sent for own in peers])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strips_are_the_whole_picture(case):
    run(case)


@pytest.mark.parametrize("case", CASES[1::3], ids=str)
def test_an_overview_in_strips_is_that_of_the_whole_picture(case):
    """Cells of other strips, cut ones, ranks without rows, cells of one token, windows that leave nothing outside."""
    run(replace(case, spec=replace(case.spec, overview=True)))


def test_the_cases_are_of_every_kind():
    assert {case.spec.down_factor for case in CASES} == {1, 2, 3, 4, 5}
    assert any(not case.strips[-1] for case in CASES), "an empty strip"
    assert any(0 < len(case.strips[1]) < case.spec.radius < case.layout.grid[0] for case in CASES if case.ranks > 2)
    assert any(case.spec.radius > sum(case.layout.grid) for case in CASES if case.ranks > 2)
    assert any(case.layout.grid[0] % case.spec.down_factor and case.strips[-1] for case in CASES if case.ranks > 2)
    assert any(case.layout.length == case.layout.image for case in CASES), "no text and no references"
    assert {bool(case.layout.reference) for case in CASES} == {case.batch == 2 for case in CASES} == {True, False}
    assert {case.scale is None for case in CASES} == {True, False}
    assert {case.dtype for case in CASES} == {torch.float32, torch.float64}


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("case", CASES[24:72:6], ids=str)
def test_any_backend_computes_the_windows(case, backend):
    run(case, backend=backend)


@pytest.mark.parametrize("case", [replace(case, average=True) for case in CASES[::5]], ids=str)
def test_averaged_rows_are_equation_7(case):
    run(case)


def test_the_interior_is_computed_while_the_border_travels():
    """Rank 1 begins when rank 0 has computed something: if that waited for the border, neither would go on."""
    case = replace(StripCase.draw(3, 2), layout=SequenceLayout(0, (24, 6)), spec=ClearSpec(4))
    computed = threading.Event()

    def work(own):
        if own.rank == 1:
            assert computed.wait(20)
        return case.run(own, on_chunk=computed.set if own.rank == 0 else None)

    peers = ThreadPeers.make(2, timeout=60)
    case.check(run_together(peers, work), [own.bytes_sent for own in peers])


def test_threads_that_share_the_processors_cores():
    """Each strip's windows are dealt out to the same workers."""
    torch.set_num_threads(2)
    for seed in range(4):
        run(replace(StripCase.draw(seed, 4), heads=6))


def test_average_is_another_function():
    case = next(case for case in CASES if case.ranks == 4 and case.layout.text > 1 and case.strips[3])
    text = slice(0, case.layout.text)
    difference = case.expected()[:, :, text] - replace(case, average=True).expected()[:, :, text]
    assert difference.abs().max() > 0.1


def test_low_precision_strays_no_further_than_its_rounding():
    case = replace(StripCase.draw(1, 4), layout=SequenceLayout(7, (20, 9), 3), spec=ClearSpec(4, 2))
    q, k, v, weight = case.whole()
    q, k, v = (one.bfloat16() for one in (q, k, v))
    options = {"grid": (20, 9), "spec": case.spec, "spatial_weight": weight, "reference_tokens": 3}
    expected = clear_attention(q.double(), k.double(), v.double(), backend="dense", **options)

    def work(peers):
        return clear_attention_strip(*(case.part(one, peers.rank) for one in (q, k, v)), peers=peers, **options)

    results = run_together(ThreadPeers.make(4), work)
    for rank, found in enumerate(results):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found[:, :, :7], results[0][:, :, :7])
        assert (found - case.part(expected, rank)).abs().max() < 2**-7 * expected.abs().max()


@pytest.mark.parametrize("ranks, text, lengths", [(2, 0, None), (4, 3, None), (4, [2, 0, 3, 1], [9, 0, 40, 6])])
def test_by_heads_the_bits_are_those_of_one_process(ranks, text, lengths):
    texts = [text] * ranks if isinstance(text, int) else text
    grid = (7, 7) if lengths else (4, 2 * ranks)
    if lengths is None:
        lengths = [8 + text] * ranks
    q, k, v = torch.randn(3, 2, 8, sum(lengths), 16, generator=torch.Generator().manual_seed(0)).unbind()

    def attend(q, k, v):
        return clear_attention(q, k, v, grid=grid, spec=ClearSpec(3, 2))

    def part(tokens, rank):
        first, rest = sum(texts[:rank]), sum(texts) + sum(lengths[:rank]) - sum(texts[:rank])
        pieces = range(first, first + texts[rank]), range(rest, rest + lengths[rank] - texts[rank])
        return torch.cat([tokens[:, :, piece.start : piece.stop] for piece in pieces], dim=2)

    def work(own):
        parts = [part(one, own.rank) for one in (q, k, v)]
        return attend_by_heads(attend, *parts, peers=own, text_tokens=text, tokens=lengths)

    peers = ThreadPeers.make(ranks)
    if sum(lengths) - sum(texts) != grid[0] * grid[1]:
        pytest.fail("the case does not add up")
    expected = attend(q, k, v)
    for rank, found in enumerate(run_together(peers, work)):
        assert torch.equal(found, part(expected, rank))
    counted = heads_traffic(sum(lengths), ranks, heads=8, head_dim=16, element_bytes=4, batch=2)
    assert sum(own.bytes_sent for own in peers) == counted


def test_threads_work_in_the_modes_of_their_caller():
    context = contextvars.ContextVar("context", default="outside")
    context.set("inside")

    def work(own):
        own.all_gather(torch.zeros(1), [(1,)] * 3).wait()  # so that no thread has ended before another begins
        return threading.get_ident(), context.get(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        found = run_together(ThreadPeers.make(3), work)
    assert len({ident for ident, *_ in found}) == 3 and found[0][0] == threading.get_ident()
    assert {modes[1] for modes in found} == {"inside"}
    assert {modes[2:] for modes in found} == {(False, True)}


class OnCard:
    """A tensor on a card, as far as its way to another thread is concerned."""

    is_cuda, device = True, torch.device("cuda:0")

    def __init__(self, log):
        self.log = log

    def record_stream(self, stream):
        self.log.append(f"kept for {stream.name}")

    def to(self, device):
        self.log.append(f"copied to {device}")
        return self


class Stream:
    """A card's stream that writes down what it is told."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for what {event.stream.name} has done")


def test_a_card_reads_a_tensor_when_it_is_computed_and_keeps_it_until_then(monkeypatch):
    log = []

    class Event:
        def record(self, stream):
            self.stream = stream

    current = Stream("sender", log)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    tensor = OnCard(log)
    message = thread_peers._Message(tensor, thread_peers._ready(tensor))
    current = Stream("receiver", log)
    thread_peers._on_device(message, torch.device("cuda:1"))
    assert log == ["receiver waits for what sender has done", "kept for receiver", "copied to cuda:1"]
