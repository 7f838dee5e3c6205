"""Dense attention of a strip: every rank gets all keys, and any function attends to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .peers import Peers
from .strips import split_rows

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_to_gathered(  # noqa: PLR0913 - the arguments of a strip, and the function
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    peers: Peers,
    strips: Sequence[range],
    width: int,
    reference_tokens: int = 0,
    dim: int = 1,
) -> Tensor:
    """Attention without windows over the whole picture, of which each rank holds and gets a strip.

    Keys and values of all image tokens travel to every rank, which then holds them all: it costs what dense attention
    costs, over the number of ranks. Text and reference queries are dealt out, so they come out with the same bits on
    every rank. An error on one rank ends the wait of the others.

    Args:
        attend: Of queries (B, heads, n, D) and keys and values (B, heads, L, D), its result with n tokens along
            ``dim``. Called once.
        q, k, v: (B, heads, T + own rows * w + R, D): text, the own rows, reference tokens.
        peers: The ranks, as this one sees them.
        strips: The rows of each rank.
        width: Tokens of a row.
        reference_tokens: R.
        dim: Of the tokens in the result of ``attend``; 1 suits (B, L, heads * D).

    Returns:
        As ``attend`` gives it, with the tokens of q.

    Raises:
        PeersError: Another rank has failed, has ended, or has not answered in time.
    """
    try:
        batch, heads, length, head_dim = q.shape
        stop = length - reference_tokens
        first = stop - len(strips[peers.rank]) * width
        shapes = [(2, batch, heads, len(rows) * width, head_dim) for rows in strips]
        image = peers.all_gather(torch.stack([k[:, :, first:stop], v[:, :, first:stop]]), shapes)
        shares = split_rows(first + reference_tokens, peers.size)
        own = shares[peers.rank]
        shared = torch.cat([q[:, :, :first], q[:, :, stop:]], dim=2)
        queries = torch.cat([shared[:, :, own.start : own.stop], q[:, :, first:stop]], dim=2)
        keys, values = zip(*image.wait().values(), strict=True)
        out = attend(
            queries,
            torch.cat([k[:, :, :first], *keys, k[:, :, stop:]], dim=2),
            torch.cat([v[:, :, :first], *values, v[:, :, stop:]], dim=2),
        )
        before, after = out.shape[:dim], out.shape[dim + 1 :]
        share, rows = out.split([len(own), stop - first], dim=dim)
        joined = peers.all_gather(share.contiguous(), [(*before, len(one), *after) for one in shares])
        everyones = torch.cat(list(joined.wait().values()), dim=dim)
        text, references = everyones.split([first, reference_tokens], dim=dim)
        return torch.cat([text, rows, references], dim=dim)
    except BaseException as error:
        peers.abort(error)
        raise
