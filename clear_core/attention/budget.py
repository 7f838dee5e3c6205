"""Chunk size limits: memory per chunk, and work between interrupt checks."""

from __future__ import annotations

import torch

_LEAST, _MOST = 64 * 2**20, 2**30
_CPU_DEFAULT = 128 * 2**20

# Query-key pairs of one call on a CPU, about a third of a second on two cores at a head size of 128.
CPU_PAIRS = 2**26


def default_chunk_bytes(device: torch.device) -> int:
    """Memory in bytes for one chunk if the caller sets no limit: an eighth of the free memory, 64 MiB to 1 GiB.

    On a CPU it is 128 MiB: larger chunks leave its caches and are slower.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved and not handed out is free as well.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    elif device.type == "cpu":
        return _CPU_DEFAULT
    else:
        return _LEAST
    return min(max(free // 8, _LEAST), _MOST)


def queries_at_once(device: torch.device, pairs_per_query: int, chunk_bytes: int) -> int:
    """Number of queries of one unmasked attention call.

    Args:
        pairs_per_query: Query-key pairs of one query over batch, heads and keys.
        chunk_bytes: Memory limit of the call.
    """
    if device.type == "cuda":
        # Fused and fast: nothing is materialised, and splitting would leave most of the card idle.
        return 2**31
    if device.type == "cpu":
        return max(64, CPU_PAIRS // pairs_per_query)
    # Elsewhere attention may write its scores out, in float32 and again in the values' dtype.
    return max(1, chunk_bytes // (8 * pairs_per_query))
