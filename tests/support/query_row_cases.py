"""Random calls for some rows of the image, and what they should give: these rows of the whole result."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention


@dataclass(frozen=True)
class Case:
    """One random call.

    Attributes:
        mask: "", or what the attention mask is over: "text", or "pairs" of all tokens.
    """

    seed: int
    layout: SequenceLayout
    rows: range
    spec: ClearSpec
    batch: int
    heads: int
    head_dim: int
    strided: bool
    mask: str
    return_lse: bool
    chunk_bytes: int | None

    def __str__(self) -> str:
        layout, spec = self.layout, self.spec
        parts = [
            f"{self.seed}",
            f"{layout.grid[0]}x{layout.grid[1]}",
            f"rows{self.rows.start}to{self.rows.stop}",
            f"T{layout.text}-R{layout.reference}",
            f"r{spec.radius}d{spec.down_factor}",
            f"b{self.batch}x{self.heads}x{self.head_dim}",
        ]
        flags = ["strided"] * self.strided + [self.mask] * bool(self.mask) + ["lse"] * self.return_lse
        return "-".join(parts + flags + [f"chunk{self.chunk_bytes}"] * bool(self.chunk_bytes))

    @classmethod
    def draw(cls, seed: int, *, longest: int = 40, head_dims: tuple[int, ...] = (16, 50), plain: bool = False) -> Case:
        """
        Args:
            plain: Without masks and log-sum-exp, which not every kernel has.
        """
        draw = random.Random(seed)
        side = draw.choice([1, 9, 20, longest])
        grid = draw.randint(1, side), draw.randint(1, side)
        first = draw.randint(0, grid[0])
        kind = draw.choice(["empty", "one", "any", "any", "any", "to the end", "all"])
        stop = {"empty": first, "one": min(first + 1, grid[0]), "to the end": grid[0]}.get(
            kind, draw.randint(first, grid[0])
        )
        rows = range(grid[0]) if kind == "all" else range(first, stop)
        mask = draw.choice(["", "", "", "text", "pairs"])
        return cls(
            seed=seed,
            layout=SequenceLayout(draw.choice([0, 0, 7, 64, 77]), grid, draw.choice([0, 0, 1, 30])),
            rows=rows,
            spec=ClearSpec(draw.choice([1, 2, 5, 8, 13, 80]), 1 if mask == "pairs" else draw.choice([1, 1, 2, 4])),
            batch=draw.choice([1, 1, 2]),
            heads=draw.choice([1, 2, 3]),
            head_dim=draw.choice(head_dims),
            strided=draw.random() < 0.5,
            mask="" if plain else mask,
            return_lse=not plain and draw.random() < 0.3,
            chunk_bytes=draw.choice([None, None, 1, 100_000]),
        )

    def positions(self) -> torch.Tensor:
        """Positions of the wanted queries in the whole sequence."""
        layout, width = self.layout, self.layout.grid[1]
        image = layout.text + torch.arange(self.rows.start * width, self.rows.stop * width)
        return torch.cat([torch.arange(layout.text), image, torch.arange(layout.image_slice.stop, layout.length)])

    def run(self, backend: str, **options: Any) -> Any:
        """The rows alone."""
        return self._run(backend, self.positions(), query_rows=self.rows, chunk_bytes=self.chunk_bytes, **options)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp: these rows of the whole result, by the dense oracle."""
        everything = torch.arange(self.layout.length)
        out, lse = self._run("dense", everything, return_lse=True)
        positions = self.positions()
        return out[:, :, positions], lse[:, :, positions]

    def _run(self, backend: str, positions: torch.Tensor, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        length = self.layout.length
        wide = torch.randn(self.batch, length, 5, self.heads, self.head_dim, generator=generator)
        q, k, v = wide[:, :, :3].permute(2, 0, 3, 1, 4)
        q = wide[:, positions, 0].transpose(1, 2)
        if not self.strided:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        bias = None
        if self.mask:
            keys = self.layout.text if self.mask == "text" else length
            bias = torch.randn(1, self.heads, length, keys, generator=generator)
            bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.3, -torch.inf)[:, :, positions]
        return clear_attention(
            q,
            k,
            v,
            grid=self.layout.grid,
            spec=self.spec,
            reference_tokens=self.layout.reference,
            bias=bias,
            backend=backend,
            **options,
        )
