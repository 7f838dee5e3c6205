"""Text and reference queries, which every rank holds and which see the whole picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .call import StripCall
from .peers import Transfer
from .strips import split_rows
from .unwindowed import attend_to_all


class SharedRows:
    """Each rank attends to its own keys; each then joins the parts of some queries, and gives the result to all.

    So every query is joined by one rank, which makes it the same bits on all of them, and a rank sends no more than in
    a ring's reduce-scatter and all-gather. In the order of the calls: ``__init__``, :meth:`join`, :meth:`wait`.

    Args:
        average: The mean of the ranks' results, each over text, references and the own strip (paper, Eq. 7), instead
            of attention to the whole picture.
    """

    def __init__(self, call: StripCall, average: bool) -> None:
        self._call = call
        self._shares = split_rows(call.shared, call.peers.size)
        q, k, v = (_outside_image(one, call.image) for one in (call.q, call.k, call.v))
        own_k, own_v = (one[:, :, call.image] for one in (call.k, call.v))
        # Each key counts once, so those of text and references are one rank's.
        if average or call.peers.rank == 0:
            own_k, own_v = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
        self._out, self._lse = attend_to_all(q, own_k, own_v, call.scale, call.on_chunk)
        self._parts = self._scatter(self._out)
        self._sums = None if average else self._scatter(self._lse)
        self._joined: Transfer | None = None

    def _scatter(self, part: Tensor) -> Transfer:
        """Starts to send each rank its share of the queries: of the own part."""
        peers = self._call.peers
        others = [rank for rank in range(peers.size) if rank != peers.rank]
        sends = {rank: _share(part, self._shares[rank]).contiguous() for rank in others}
        shape = _share(part, self._shares[peers.rank]).shape
        return peers.exchange(sends, dict.fromkeys(others, shape), part)

    def join(self) -> None:
        """Waits for the others' parts of the own share, joins them, and starts to send the result to all."""
        peers, own = self._call.peers, self._shares[self._call.peers.rank]
        parts = _by_rank(self._parts, peers.rank, _share(self._out, own))
        if self._sums is None:
            joined = mean(parts)
        else:
            joined = join_parts(parts, _by_rank(self._sums, peers.rank, _share(self._lse, own)))
        batch, heads, _, head_dim = self._out.shape
        shapes = [(batch, heads, len(share), head_dim) for share in self._shares]
        self._joined = peers.all_gather(joined.contiguous(), shapes)

    def wait(self) -> Tensor:
        """(B, heads, T + R, D), the same bits on every rank."""
        assert self._joined is not None
        return torch.cat(list(self._joined.wait().values()), dim=2)


def mean(parts: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape, in their dtype; summed in their order in float32 or more."""
    total = torch.zeros_like(parts[0], dtype=_wide(parts[0].dtype))
    for part in parts:
        total += part
    return (total / len(parts)).to(parts[0].dtype)


def join_parts(parts: Sequence[Tensor], sums: Sequence[Tensor]) -> Tensor:
    """Attention of the same queries over several sets of keys, joined into the attention over all of them. Exact.

    Args:
        parts: (B, heads, queries, D) each.
        sums: (B, heads, queries) float32 each: log of the parts' softmax denominators, -inf where a part has no keys.
            Some part has keys.

    Returns:
        (B, heads, queries, D) in the dtype of the parts; summed in their order in float32 or more.
    """
    dtype = _wide(parts[0].dtype)
    logs = torch.stack(list(sums)).to(dtype)
    weights = (logs - logs.logsumexp(dim=0)).exp()[..., None]
    total = torch.zeros_like(parts[0], dtype=dtype)
    for part, weight in zip(parts, weights, strict=True):
        total += part * weight
    return total.to(parts[0].dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _outside_image(tokens: Tensor, image: slice) -> Tensor:
    return torch.cat([tokens[:, :, : image.start], tokens[:, :, image.stop :]], dim=2)


def _share(tokens: Tensor, queries: range) -> Tensor:
    return tokens[:, :, queries.start : queries.stop]


def _by_rank(transfer: Transfer, rank: int, own: Tensor) -> list[Tensor]:
    parts = {rank: own, **transfer.wait()}
    return [parts[one] for one in sorted(parts)]
