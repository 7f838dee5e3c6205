"""The links between ranks: what they are, and what they move."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from clear_core.parallel import Peers

from .rounds import together

CARD_BYTES, PROCESSOR_BYTES = 2**28, 2**24
"""Of the message that the rate is measured with."""


def measure_links(
    peers: Peers, device: torch.device, how: str, devices: Sequence[torch.device], rounds: int
) -> dict[str, Any]:
    """Rate and latency while every rank sends to the next one and receives from the one before.

    Args:
        how: The ranks are connected: "nccl", "gloo" or "threads".
        devices: Of all ranks of this machine.
    """
    size = CARD_BYTES if device.type == "cuda" else PROCESSOR_BYTES
    following, before = (peers.rank + 1) % peers.size, (peers.rank - 1) % peers.size
    large, small = (torch.zeros(count, dtype=torch.uint8, device=device) for count in (size, 1))

    def send(message: torch.Tensor) -> None:
        peers.exchange({following: message}, {before: message.shape}, message).wait()

    functions = {"large": lambda: send(large), "small": lambda: send(small)}
    together(functions, peers, device, 1)  # opens the links
    seconds = together(functions, peers, device, rounds)
    return {
        "kind": "link",
        "how": how,
        "devices": [str(one) for one in devices],
        "cards": device.type == "cuda",
        "peer_access": peer_access(devices),
        "message_bytes": size,
        "gb_per_s": round(size / median(seconds["large"]) / 1e9, 3),
        "latency_us": round(median(seconds["small"]) * 1e6, 1),
    }


def peer_access(devices: Sequence[torch.device]) -> bool | None:
    """Whether each card of this machine reads every other one's memory; None without two cards."""
    cards = [one for one in dict.fromkeys(devices) if one.type == "cuda"]
    if len(cards) < 2:
        return None
    return all(torch.cuda.can_device_access_peer(a, b) for a in cards for b in cards if a != b)
