"""Chunk size limits: memory per chunk, and work between interrupt checks."""

from __future__ import annotations

import torch

from .fused import SCORE_BYTES

_ON_CPU = 16 * 2**20
_ELSEWHERE = 512 * 2**20
_LEAST = 4 * 2**20

# Query-key pairs of one call on a CPU, about a third of a second on two cores at a head size of 128.
CPU_PAIRS = 2**26


def default_chunk_bytes(device: torch.device, state_bytes: int) -> int:
    """Memory in bytes for one chunk if the caller sets no limit: a hidden state, but neither very little nor very much.

    Copies of q, k and v and a chunk are then about the four hidden states that are planned for the attention.

    It does not follow the free memory: a host that keeps weights on the card until it is full would make the chunks
    small, and libraries plan anew for chunks of another size. Larger ones leave a CPU's caches and are slower; a few
    tiles keep all of a card busy.

    Args:
        state_bytes: Of the queries.
    """
    return min(_ON_CPU if device.type == "cpu" else _ELSEWHERE, max(_LEAST, state_bytes))


def queries_at_once(device: torch.device, pairs_per_query: int, chunk_bytes: int, fused: bool) -> int:
    """Number of queries of one attention call.

    Args:
        pairs_per_query: Query-key pairs of one query over batch, heads and keys.
        chunk_bytes: Memory limit of the call.
        fused: Whether attention keeps no scores in memory.
    """
    if device.type == "cpu":
        return max(64, CPU_PAIRS // pairs_per_query)
    # A fused kernel is fast, and splitting would leave most of the card idle.
    return 2**31 if fused else max(1, chunk_bytes // (SCORE_BYTES * pairs_per_query))
