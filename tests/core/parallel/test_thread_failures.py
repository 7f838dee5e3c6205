"""Ranks that are threads: what is refused, and what happens to the others if one fails."""

import time
from dataclasses import replace

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.parallel import PeersError, ThreadPeers, attend_by_heads, clear_attention_strip, run_together
from tests.support.strip_cases import StripCase


def strip_of_rank(own, **changes):
    options = {"peers": own, "grid": (6, 2), "spec": ClearSpec(2), **changes}
    tokens = options.pop("tokens", 3 + 4)
    q = options.pop("q", torch.zeros(1, 2, tokens, 16))
    return clear_attention_strip(q, q, q, **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": 3}, "q has 3 tokens, but rank 1 of 3 holds 2 of 6 rows of 2 tokens, and 0 reference tokens; these"),
        ({"grid": (6, 0)}, "grid width is 0; expected an integer of at least 1"),
        ({"grid": 6}, "grid is 6; expected .height, width. in tokens"),
        ({"reference_tokens": -1}, "reference_tokens is -1"),
        ({"spec": 8}, "spec is 8; expected a ClearSpec"),
        ({"text": "mean"}, "text is 'mean'; expected 'exact' or 'average'"),
        ({"backend": "magic"}, "backend is 'magic'"),
        ({"q": torch.zeros(2, 7, 16)}, "q has shape .2, 7, 16."),
        ({"q": torch.zeros(1, 2, 7, 16, requires_grad=True)}, "clear_attention_strip has no gradient"),
        ({"spec": ClearSpec(2, 2), "spatial_weight": torch.zeros(3, 3)}, "spatial_weight has shape .3, 3."),
    ],
)
def test_what_does_not_fit_is_refused_and_ends_the_others(changes, message):
    peers = ThreadPeers.make(3, timeout=60)
    with pytest.raises(ValueError, match=message):
        run_together(peers, lambda own: strip_of_rank(own, **(changes if own.rank == 1 else {})))


def test_heads_that_cannot_be_dealt_out_are_refused():
    q = torch.zeros(1, 6, 4, 16)
    with pytest.raises(ValueError, match="6 heads cannot be dealt out to 4 ranks; their number must divide the heads."):
        run_together(ThreadPeers.make(4), lambda own: attend_by_heads(lambda q, k, v: q, q, q, q, peers=own))


@pytest.mark.parametrize(
    "heads, message",
    [
        ([torch.zeros(1, 6, 4, 16, requires_grad=True)] * 3, "attend_by_heads has no gradient"),
        ([torch.zeros(1, 6, 4, 16), torch.zeros(1, 6, 5, 16), torch.zeros(1, 6, 4, 16)], "q, k and v have shapes"),
        ([torch.zeros(6, 4, 16)] * 3, "expected .batch, heads, tokens, head size. of all three"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        run_together(ThreadPeers.make(2), lambda own: attend_by_heads(lambda q, k, v: q, *heads, peers=own))


@pytest.mark.parametrize("text, tokens", [([1, 1, 1], None), (5, None), (0, [4, 5, 4])])
def test_tokens_that_do_not_fit_the_ranks_are_refused(text, tokens):
    q = torch.zeros(1, 6, 4, 16)
    options = {"text_tokens": text, "tokens": tokens}
    with pytest.raises(ValueError, match="expected for each of 2 ranks the tokens of its part, here 4"):
        run_together(ThreadPeers.make(2), lambda own: attend_by_heads(lambda q, k, v: q, q, q, q, peers=own, **options))


@pytest.mark.parametrize("by_heads", [False, True])
def test_threads_of_the_callers_own_are_told_too(by_heads):
    peers = ThreadPeers.make(3, timeout=60)
    with pytest.raises(ValueError, match="expected"):
        if by_heads:
            attend_by_heads(lambda q, k, v: q, *[torch.zeros(1, 3, 4, 16)] * 3, peers=peers[1], text_tokens=5)
        else:
            strip_of_rank(peers[1], text="mean")
    with pytest.raises(PeersError, match="rank 1 has failed .ValueError., so the others stop."):
        strip_of_rank(peers[0])


class Interrupt(BaseException):
    """As a host's: no Exception."""


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_interrupt_of_one_ends_all_and_is_raised_once(failing):
    case = replace(StripCase.draw(3, 4), layout=SequenceLayout(5, (24, 6)), spec=ClearSpec(4))
    peers = ThreadPeers.make(4, timeout=60)
    seen = []

    def interrupt():
        raise Interrupt

    def work(own):
        try:
            case.run(own, on_chunk=interrupt if own.rank == failing else None)
        except BaseException as error:
            seen.append((own.rank, type(error)))
            raise

    started = time.monotonic()
    with pytest.raises(Interrupt):
        run_together(peers, work)
    assert time.monotonic() - started < 20
    # One that was past its last wait may be done.
    assert (failing, Interrupt) in seen
    assert {kind for rank, kind in seen if rank != failing} <= {PeersError}
    with pytest.raises(PeersError, match=f"rank {failing} has failed .Interrupt., so the others stop"):
        case.run(peers[0])


def test_an_error_outside_attention_ends_all_too():
    def work(own):
        if own.rank == 1:
            raise torch.OutOfMemoryError("no room")
        own.all_gather(torch.zeros(2), [(2,), (2,), (2,)]).wait()

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        run_together(ThreadPeers.make(3, timeout=60), work)


def test_a_thread_that_does_not_come_is_waited_for_in_time():
    peers = ThreadPeers.make(2, timeout=0.2)
    with pytest.raises(PeersError, match="rank 0 waited 0.2 s in vain for rank 1; do all threads make the same calls"):
        peers[0].all_gather(torch.zeros(2), [(2,), (2,)]).wait()


def test_a_thread_that_has_ended_is_not_waited_for():
    def work(own):
        if own.rank:
            own.all_gather(torch.zeros(2), [(2,), (2,), (2,)]).wait()

    started = time.monotonic()
    with pytest.raises(PeersError, match="rank . waited in vain for rank 0, which has ended; do all threads make the"):
        run_together(ThreadPeers.make(3, timeout=60), work)
    assert time.monotonic() - started < 20


def test_what_a_thread_sent_before_it_ended_arrives():
    def work(own):
        transfer = own.all_gather(torch.full((2,), float(own.rank)), [(2,), (2,)])
        if own.rank:
            return None
        time.sleep(0.2)
        return transfer.wait()[1].tolist()

    assert run_together(ThreadPeers.make(2, timeout=60), work) == [[1.0, 1.0], None]


def test_ranks_with_different_calls_are_told():
    def work(own):
        own.all_gather(torch.zeros(2 + own.rank), [(2,), (2,)]).wait()

    with pytest.raises(PeersError, match=r"rank 1 sent torch.float32 \(3,\), but rank 0 expects torch.float32 \(2,\)"):
        run_together(ThreadPeers.make(2, timeout=60), work)
