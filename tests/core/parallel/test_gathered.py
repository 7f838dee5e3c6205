"""Dense attention of strips: any function, given all keys, on every rank."""

import pytest
import torch
import torch.nn.functional as F

from clear_core.parallel import PeersError, ThreadPeers, run_together
from clear_core.parallel.gathered import attend_to_gathered
from tests.support.strip_cases import StripCase

CASES = [StripCase.draw(seed, ranks) for ranks in (1, 2, 3, 4) for seed in range(8)]


def by_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(B, L, heads * D), as a host's function gives it."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dim", [1, 2], ids=["by-tokens", "by-heads"])
def test_strips_are_the_whole_picture(case, dim):
    attend = by_tokens if dim == 1 else F.scaled_dot_product_attention
    q, k, v, _ = case.whole()
    calls = []

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(tensors[0].shape[2])
        return attend(*tensors)

    def run(peers: ThreadPeers) -> torch.Tensor:
        parts = (case.part(one, peers.rank) for one in (q, k, v))
        width, reference = case.layout.grid[1], case.layout.reference
        return attend_to_gathered(
            counted, *parts, peers=peers, strips=case.strips, width=width, reference_tokens=reference, dim=dim
        )

    results = run_together(ThreadPeers.make(case.ranks, timeout=60), run)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    shared = {}
    for rank, found in enumerate(results):
        wanted = case.part(expected, rank)
        found = found if dim == 2 else found.unflatten(2, (case.heads, -1)).transpose(1, 2)
        assert found.shape == wanted.shape
        assert torch.allclose(found.double(), wanted, atol=1e-5)
        text, references = case.layout.text, case.layout.reference
        shared[rank] = torch.cat([found[:, :, :text], found[:, :, found.shape[2] - references :]], dim=2)
        assert torch.equal(shared[rank], shared[0]), "text and reference rows differ between ranks"
    assert sum(calls) == case.layout.length, "every query is computed once"


def test_an_error_in_the_function_ends_all_ranks():
    case = StripCase.draw(3, 3)

    def run(peers: ThreadPeers) -> torch.Tensor:
        def attend(*tensors: torch.Tensor) -> torch.Tensor:
            if peers.rank == 1:
                raise MemoryError("on rank 1")
            return by_tokens(*tensors)

        parts = (case.part(one, peers.rank) for one in case.whole()[:3])
        try:
            return attend_to_gathered(
                attend,
                *parts,
                peers=peers,
                strips=case.strips,
                width=case.layout.grid[1],
                dim=1,
                reference_tokens=case.layout.reference,
            )
        except PeersError as error:
            ended.append((peers.rank, str(error)))
            raise

    ended: list = []
    with pytest.raises(MemoryError, match="on rank 1"):
        run_together(ThreadPeers.make(3, timeout=60), run)
    assert sorted(rank for rank, _ in ended) == [0, 2] and all("rank 1 has failed" in words for _, words in ended)
