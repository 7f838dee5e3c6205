"""Random attention calls beside the dense oracle, for tests of every backend."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.attention.pool import mean_weight

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
SEED = 20


@dataclass(frozen=True)
class Case:
    """One random call."""

    seed: int
    grid: tuple[int, int]
    text: int
    reference: int
    radius: int
    down_factor: int
    batch: int
    heads: int
    head_dim: int
    weight: str
    strided: bool
    scale: float | None
    chunk_bytes: int | None
    overview: bool = False

    def __str__(self):
        parts = [
            f"{self.seed}",
            f"{self.grid[0]}x{self.grid[1]}",
            f"T{self.text}",
            f"R{self.reference}",
            f"r{self.radius}",
            f"d{self.down_factor}-{self.weight}",
            f"b{self.batch}x{self.heads}x{self.head_dim}",
        ]
        return "-".join(parts + ["strided"] * self.strided + [f"chunk{self.chunk_bytes}"] * bool(self.chunk_bytes))

    @classmethod
    def draw(cls, seed, head_dims=(16, 32, 50, 64, 72, 128)):
        draw = random.Random(seed)
        longest = draw.choice([1, 8, 20, 50])
        grid = draw.randint(1, longest), draw.randint(1, longest)
        return cls(
            seed=seed,
            grid=grid,
            text=draw.choice([0, 0, 1, 7, 64, 100]),
            reference=draw.choice([0, 0, 0, 1, 30]),
            radius=draw.choice([1, 2, 3, 5, 8, 8, 13, 16, 32, 80]),
            down_factor=draw.choice([1, 1, 2, 3, 4, 5]),
            batch=draw.choice([1, 1, 2]),
            heads=draw.choice([1, 2, 3]),
            head_dim=draw.choice(head_dims),
            weight=draw.choice(["mean", "learned"]),
            strided=draw.random() < 0.5,
            scale=draw.choice([None, None, 0.11]),
            chunk_bytes=draw.choice([None, 1, 100_000]),
        )

    def spec(self):
        return ClearSpec(self.radius, self.down_factor, self.overview)

    def tensors(self, dtype):
        """q, k, v: contiguous, or views as ComfyUI's blocks hand them over (V inside a wider tensor)."""
        generator = torch.Generator().manual_seed(self.seed)
        length = self.text + self.grid[0] * self.grid[1] + self.reference
        wide = torch.randn(self.batch, length, 7, self.heads, self.head_dim, generator=generator).to(dtype)
        q, k, v = wide[:, :, :3].permute(2, 0, 3, 1, 4)
        return (q, k, v) if self.strided else (q.contiguous(), k.contiguous(), v.contiguous())

    def spatial_weight(self):
        if self.weight == "mean":
            return None
        d = self.down_factor
        noise = torch.rand(d, d, generator=torch.Generator().manual_seed(self.seed))
        return mean_weight(d) * (0.5 + noise)

    def run(self, dtype, backend, **options):
        return clear_attention(
            *self.tensors(dtype),
            grid=self.grid,
            spec=self.spec(),
            scale=self.scale,
            spatial_weight=self.spatial_weight(),
            reference_tokens=self.reference,
            backend=backend,
            **options,
        )

    def oracle(self, dtype, **options):
        """``dense`` in float32 on the numbers of ``dtype``."""
        q, k, v = (one.float() for one in self.tensors(dtype))
        return clear_attention(
            q,
            k,
            v,
            grid=self.grid,
            spec=self.spec(),
            scale=self.scale,
            spatial_weight=self.spatial_weight(),
            reference_tokens=self.reference,
            backend="dense",
            **options,
        )


def error(found, expected):
    # Of values above 1 the last digit of a dtype is worth more.
    return float((found.float() - expected).abs().max() / expected.abs().max().clamp(min=1))


def assert_close(found, expected, dtype, case=None):
    """Within the tolerance; or, with ``case``, no farther off than ``dense`` itself is in ``dtype``.

    The latter decides about one bfloat16 case in 300, whose result lies between 1 and 2, where half of bfloat16's
    last digit is 0.0039 already.
    """
    assert found.dtype == dtype and found.shape == expected.shape
    off = error(found, expected)
    if off > TOLERANCE[dtype] and case is not None and dtype == torch.bfloat16:
        assert off <= 1.01 * error(case.run(dtype, "dense"), expected)
    else:
        assert off <= TOLERANCE[dtype]


def cases(number, every_day, **options):
    """Random cases; those after the first ``every_day`` run with --slow only."""
    drawn = [Case.draw(SEED + i, **options) for i in range(number)]
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (i >= every_day)) for i, case in enumerate(drawn)
    ]
