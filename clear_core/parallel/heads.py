"""Heads dealt out to the ranks (Ulysses, arXiv 2309.14509): any attention to the whole sequence, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..attention.api import untraced
from ..attention.call import wants_grad
from ..wording import quoted
from .peers import Peers

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention: q, k, v of (B, some heads, L, D) to the result, as q in shape and dtype."""


@untraced
def attend_by_heads(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    peers: Peers,
    text_tokens: int | Sequence[int] = 0,
    tokens: Sequence[int] | None = None,
) -> Tensor:
    """Attention of a sequence of which each rank holds a part: each computes some heads for all tokens.

    The result equals that of a single process bit for bit, and costs four all-to-alls of a hidden state. Strips send
    less unless they are low (:mod:`.traffic`).

    Args:
        attend: Called once with (B, heads / ranks, L, D): all ranks' text in the order of ranks, then all their other
            tokens in the order of ranks.
        q, k, v: (B, heads, own tokens, D): the own part of the text, then the own part of the rest.
        peers: The ranks.
        text_tokens: Text tokens at the start of each rank's part; one number if all hold as many.
        tokens: Tokens of each rank's whole part; None if all hold as many.

    Returns:
        As q in shape and dtype: the own tokens' result. It has no gradient.

    Raises:
        ValueError: The heads cannot be dealt out evenly, or the tokens do not fit.
        PeersError: Another rank has failed, has ended, or has not answered in time. After any error ``peers`` is used
            up.
    """
    try:
        texts = [text_tokens] * peers.size if isinstance(text_tokens, int) else list(text_tokens)
        lengths = [q.shape[2]] * peers.size if tokens is None else list(tokens)
        _check(q, k, v, peers, texts, lengths)
        return _attend(attend, q, k, v, peers, texts, lengths)
    except BaseException as error:
        peers.abort(error)
        raise


def _attend(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, peers: Peers, texts: list[int], lengths: list[int]
) -> Tensor:
    batch, heads, _, head_dim = q.shape
    each = heads // peers.size
    others = [rank for rank in range(peers.size) if rank != peers.rank]
    dealt = [slice(rank * each, (rank + 1) * each) for rank in range(peers.size)]

    sends = {rank: torch.stack([one[:, dealt[rank]] for one in (q, k, v)]) for rank in others}
    shapes = {rank: (3, batch, each, lengths[rank], head_dim) for rank in others}
    arrived = peers.exchange(sends, shapes, q).wait()
    arrived[peers.rank] = torch.stack([one[:, dealt[peers.rank]] for one in (q, k, v)])
    parts = [(arrived[rank], texts[rank]) for rank in range(peers.size)]
    whole = torch.cat(
        [*(part[..., :text, :] for part, text in parts), *(part[..., text:, :] for part, text in parts)], dim=3
    )
    out = attend(*whole.unbind())

    text_parts = out[:, :, : sum(texts)].split(texts, dim=2)
    rest_parts = out[:, :, sum(texts) :].split([n - t for n, t in zip(lengths, texts, strict=True)], dim=2)
    own = [torch.cat(both, dim=2) for both in zip(text_parts, rest_parts, strict=True)]
    shape = (batch, each, lengths[peers.rank], head_dim)
    back = peers.exchange({rank: own[rank] for rank in others}, dict.fromkeys(others, shape), q).wait()
    back[peers.rank] = own[peers.rank]
    return torch.cat([back[rank] for rank in range(peers.size)], dim=1)


def _check(q: Tensor, k: Tensor, v: Tensor, peers: Peers, texts: list[int], lengths: list[int]) -> None:
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}; expected (batch, heads, tokens, head size) of all three.")
    if wants_grad(q, k, v):
        raise ValueError("attend_by_heads has no gradient; call it under torch.no_grad().")
    heads = q.shape[1]
    if heads % peers.size:
        raise ValueError(
            f"{heads} heads cannot be dealt out to {peers.size} ranks; their number must divide the heads."
        )
    fits = len(texts) == len(lengths) == peers.size and lengths[peers.rank] == q.shape[2]
    if not fits or any(not 0 <= text <= length for text, length in zip(texts, lengths, strict=True)):
        raise ValueError(
            f"text_tokens is {quoted(texts)} and tokens {quoted(lengths)}; expected for each of {peers.size} ranks the "
            f"tokens of its part, here {q.shape[2]}, and how many of them are text."
        )
