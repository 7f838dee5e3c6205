"""Trained layers: a frozen projection of the model, and beside it what the student has in its place.

One transformer is teacher and student. The teacher's weights stay what they are, in any precision; the student's are
float32, and are whole weights or low-rank additions (LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FullPart(nn.Module):
    """A projection's own weight and bias, which begin as the model's.

    Args:
        weight: (out, in) of the model.
        bias: (out,), None without one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True))
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(torch.float32, copy=True))

    def forward(self, states: Tensor, base: Tensor) -> Tensor:
        """(..., in) to (..., out), in place of ``base``, what the model gives."""
        return F.linear(states, self.weight, self.bias)


class LowRankPart(nn.Module):
    """A change of a projection of a given rank: ``up @ down``, and of its bias.

    It begins as no change. ``down`` has orthonormal rows, so that all its directions count alike; at full rank it is
    the identity, and then the first step is that of the whole weight.

    Args:
        weight, bias: Of the model.
        rank: 1 to the smaller side of the weight.
        seed: Of the directions.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int, seed: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(directions(rank, columns, seed, weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.bias = None if bias is None else nn.Parameter(torch.zeros(rows, device=weight.device))

    def forward(self, states: Tensor, base: Tensor) -> Tensor:
        """(..., out): ``base``, what the model gives, with the change."""
        return base + F.linear(F.linear(states, self.down), self.up, self.bias)


Part = FullPart | LowRankPart


def directions(rank: int, width: int, seed: int, device: torch.device) -> Tensor:
    """(rank, width) orthonormal rows; the identity at full rank."""
    if rank == width or device.type == "meta":
        return torch.eye(rank, width, device=device)
    drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0].T.contiguous().to(device)


class TrainedLayer(nn.Module):
    """A linear layer of the model with trained parts in its rows.

    Attributes:
        base: The model's layer, frozen; it may be quantised later.
        on: Whether the layer is the student's.
        parts: One for each of some leading groups of ``rows`` rows; the rows after them stay the model's.

    Args:
        base: The model's layer.
        parts: As above, in the order of the rows.
        rows: Rows of each part.
    """

    def __init__(self, base: nn.Module, parts: Sequence[Part], rows: int) -> None:
        super().__init__()
        self.base = base
        self.parts = nn.ModuleList(parts)
        self.rows = rows
        self.on = True
        self.covers = len(parts) * rows == base.out_features

    def forward(self, states: Tensor) -> Tensor:
        """As the model's layer."""
        if not self.on:
            return self.base(states)
        if self.covers and all(isinstance(part, FullPart) for part in self.parts):
            # The model's own product would be thrown away.
            made = [part(states, states) for part in self.parts]
            return made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        whole = self.base(states)
        groups = whole.split(self.rows, dim=-1)[: len(self.parts)]
        made = [part(states, group) for part, group in zip(self.parts, groups, strict=True)]
        if self.covers and len(made) == 1:
            return made[0]
        rest = [] if self.covers else [whole[..., len(self.parts) * self.rows :]]
        return torch.cat([part.to(whole.dtype) for part in made] + rest, dim=-1)
