"""Random pictures cut into strips, and what each rank should get: its part of the whole picture's result."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.parallel import Peers, StripTraffic, clear_attention_strip, split_rows, strip_traffic

TOLERANCE = 2e-6
"""Largest error of float32, relative to the largest element of the result."""


@dataclass(frozen=True)
class StripCase:
    """One random call on ``ranks`` ranks."""

    seed: int
    ranks: int
    layout: SequenceLayout
    spec: ClearSpec
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    scale: float | None = None
    average: bool = False

    def __str__(self) -> str:
        layout, spec = self.layout, self.spec
        kind = "overview" if spec.overview else "d"
        return (
            f"{self.seed}-{self.ranks}x-{layout.grid[0]}x{layout.grid[1]}-T{layout.text}-R{layout.reference}-"
            f"r{spec.radius}{kind}{spec.down_factor}-b{self.batch}x{self.heads}x{self.head_dim}-{str(self.dtype)[6:]}"
        )

    @classmethod
    def draw(cls, seed: int, ranks: int) -> StripCase:
        draw = random.Random(f"{seed}, {ranks}")
        height = draw.choice([draw.randint(1, ranks), draw.randint(1, 24), draw.randint(12, 40)])
        return cls(
            seed=seed,
            ranks=ranks,
            layout=SequenceLayout(
                draw.choice([0, 1, 7, 33]), (height, draw.randint(1, 14)), draw.choice([0, 0, 1, 5, 30])
            ),
            spec=ClearSpec(draw.choice([1, 2, 3, 5, 8, 13, 80]), draw.choice([1, 1, 2, 3, 4, 5])),
            batch=draw.choice([1, 1, 2]),
            heads=draw.choice([1, 2, 3]),
            head_dim=draw.choice([16, 24]),
            dtype=draw.choice([torch.float32, torch.float32, torch.float64]),
            scale=draw.choice([None, None, 0.4]),
        )

    @property
    def strips(self) -> tuple[range, ...]:
        return split_rows(self.layout.grid[0], self.ranks, multiple=self.spec.down_factor)

    @property
    def text(self) -> str:
        return "average" if self.average else "exact"

    def whole(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v of the whole picture, and pooling weights of both signs."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (3, self.batch, self.heads, self.layout.length, self.head_dim)
        q, k, v = torch.randn(shape, generator=generator, dtype=self.dtype).unbind()
        d = self.spec.down_factor
        weighted = self.spec.pools and not self.spec.overview
        weight = torch.randn(d, d, generator=generator) / d**2 + 1 / d**2 if weighted else None
        return q, k, v, weight

    def part(self, tokens: Tensor, rank: int) -> Tensor:
        """What a rank holds of q, k, v or of the result."""
        layout, rows, width = self.layout, self.strips[rank], self.layout.grid[1]
        image = tokens[:, :, layout.text + rows.start * width : layout.text + rows.stop * width]
        return torch.cat([tokens[:, :, : layout.text], image, tokens[:, :, layout.image_slice.stop :]], dim=2)

    def run(self, peers: Peers, **options: Any) -> Tensor:
        """The strip of one rank."""
        *tensors, weight = self.whole()
        return clear_attention_strip(
            *(self.part(one, peers.rank) for one in tensors),
            peers=peers,
            grid=self.layout.grid,
            spec=self.spec,
            spatial_weight=weight,
            scale=self.scale,
            reference_tokens=self.layout.reference,
            text=self.text,
            **options,
        )

    def expected(self) -> Tensor:
        """The whole picture by the dense oracle, in float64; averaged rows by Eq. 7."""
        q, k, v, weight = self.whole()
        q, k, v = q.double(), k.double(), v.double()
        layout = self.layout
        out = clear_attention(
            q,
            k,
            v,
            grid=layout.grid,
            spec=self.spec,
            spatial_weight=weight,
            scale=self.scale,
            reference_tokens=layout.reference,
            backend="dense",
        )
        if self.average:
            shared = torch.ones(layout.length, dtype=torch.bool)
            shared[layout.image_slice] = False
            scale = self.head_dim**-0.5 if self.scale is None else self.scale
            parts = [
                (q[:, :, shared] @ self.part(k, rank).mT * scale).softmax(dim=-1) @ self.part(v, rank)
                for rank in range(self.ranks)
            ]
            out[:, :, shared] = sum(parts) / self.ranks
        return out

    def traffic(self) -> list[int]:
        """By rank: bytes that the formula counts."""
        counted: tuple[StripTraffic, ...] = strip_traffic(
            self.layout,
            self.spec,
            self.ranks,
            heads=self.heads,
            head_dim=self.head_dim,
            element_bytes=self.dtype.itemsize,
            batch=self.batch,
            average=self.average,
        )
        return [sum(one) for one in counted]

    def check(self, results: list[Tensor], bytes_sent: list[int]) -> None:
        """Asserts that the ranks' results are right, their shared rows the same bits, and the bytes as counted."""
        expected = self.expected()
        largest = expected.abs().max()
        for rank, found in enumerate(results):
            wanted = self.part(expected, rank)
            assert found.shape == wanted.shape and found.dtype == self.dtype
            error = (found - wanted).abs().max() / largest if found.numel() else torch.tensor(0.0)
            assert error <= TOLERANCE, f"rank {rank} is off by {error:.2g}"
            assert torch.equal(self._shared(found), self._shared(results[0])), f"rank {rank} has other text rows"
        assert bytes_sent == self.traffic()

    def _shared(self, result: Tensor) -> Tensor:
        """Text and reference rows of a rank's result."""
        layout = self.layout
        return torch.cat([result[:, :, : layout.text], result[:, :, result.shape[2] - layout.reference :]], dim=2)
