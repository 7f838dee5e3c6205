"""The border: keys and values of other strips' rows that the own queries see."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import StripCall
from .peers import Transfer
from .strips import transfers


def send_border(call: StripCall) -> Transfer:
    """Starts to send own rows to whom they concern, and to receive those of others: keys and values in one message."""
    rank, (_, width) = call.peers.rank, call.grid
    sends: dict[int, Tensor] = {}
    expects: dict[int, tuple[int, ...]] = {}
    for (sender, receiver), rows in transfers(call.strips, call.spec.radius).items():
        if sender == rank:
            part = call.positions(rows)
            sends[receiver] = torch.stack([call.k[:, :, part], call.v[:, :, part]])
        elif receiver == rank:
            batch, heads, _, head_dim = call.k.shape
            expects[sender] = (2, batch, heads, len(rows) * width, head_dim)
    return call.peers.exchange(sends, expects, call.k)


def with_border(call: StripCall, border: Transfer) -> list[tuple[range, Tensor, Tensor]]:
    """Waits for the border.

    Returns:
        From top to bottom, own rows among them: rows, and their keys and values, (B, heads, rows * w, D) each.
    """
    arrived, rank = border.wait(), call.peers.rank
    parts = [(call.own, call.k[:, :, call.image], call.v[:, :, call.image])]
    for (sender, receiver), rows in transfers(call.strips, call.spec.radius).items():
        if receiver == rank:
            keys, values = arrived[sender]
            parts.append((rows, keys, values))
    return sorted(parts, key=lambda part: part[0].start)


def keys_of_rows(parts: list[tuple[range, Tensor, Tensor]], rows: range, width: int) -> tuple[Tensor, Tensor]:
    """Keys and values of some rows, put together of the parts that hold them.

    Args:
        parts: As of :func:`with_border`.
        rows: Held by these parts, one after the other.
        width: Tokens of a row.

    Returns:
        (B, heads, rows * w, D) each.
    """
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for there, k, v in parts:
        first, stop = max(rows.start, there.start), min(rows.stop, there.stop)
        if first < stop:
            part = slice((first - there.start) * width, (stop - there.start) * width)
            keys.append(k[:, :, part])
            values.append(v[:, :, part])
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)
