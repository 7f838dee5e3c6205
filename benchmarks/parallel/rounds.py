"""What all ranks do at the same time, timed: the slowest of them counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from clear_core.parallel import Peers

from ..timing import synchronize


def together(
    functions: dict[str, Callable[[], Any]], peers: Peers, device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every function in every round on the slowest rank; called by all ranks, with the same names.

    A round runs each once, and each begins on all ranks at once.
    """
    seconds: list[float] = []
    for _ in range(rounds):
        for function in functions.values():
            meet(peers, device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    slowest = worst_of_ranks(seconds, peers, device)
    return {name: slowest[index :: len(functions)] for index, name in enumerate(functions)}


def meet(peers: Peers, device: torch.device) -> None:
    """Waits until all ranks are here."""
    gathered([0.0], peers, device)
    synchronize(device)


def worst_of_ranks(numbers: Sequence[float], peers: Peers, device: torch.device) -> list[float]:
    """The largest of all ranks' numbers, place by place; the same on all ranks."""
    return gathered(numbers, peers, device).amax(dim=0).tolist()


def sum_of_ranks(number: int, peers: Peers, device: torch.device) -> int:
    """The sum of all ranks' numbers below 2**53, the same on all ranks."""
    return int(gathered([number], peers, device).sum())


def gathered(numbers: Sequence[float], peers: Peers, device: torch.device) -> torch.Tensor:
    """(ranks, numbers) float64 on the CPU, the same on all ranks; a rank's numbers in its row."""
    # A device of Apple's has no float64.
    own = torch.tensor(numbers, dtype=torch.float64).view(torch.uint8).to(device)
    parts = peers.all_gather(own, [own.shape] * peers.size).wait()
    return torch.stack([parts[rank].cpu() for rank in range(peers.size)]).view(torch.float64)
