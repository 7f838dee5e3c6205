"""Random attention masks, and what they should give: a softmax written out in float64."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention.pool import pool_tokens


def written_out(q, k, v, layout, spec, weight, scale, bias):
    """Output and log-sum-exp in float64; a query that sees no key gets zeros and -inf.

    Args:
        bias: (B|1, heads|1, L|1, T or L), or None.
    """
    q, k, v = (one.double() for one in (q, k, v))
    (height, width), text = layout.grid, layout.text
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    seen = torch.ones(layout.length, layout.length, dtype=torch.bool)
    distance = (places[:, None] - places).square().sum(dim=-1)
    seen[layout.image_slice, layout.image_slice] = distance < spec.radius**2
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    level = torch.zeros(1, 1, 1, dtype=torch.float64)
    if bias is not None:
        numbers = torch.where(bias, 0.0, -torch.inf).double() if bias.dtype == torch.bool else bias.double()
        scores[..., : numbers.shape[-1]] += numbers
        if numbers.shape[-1] > text:
            level = numbers[..., text]
    if spec.pools:
        keys, values = (pool_tokens(one[:, :, layout.image_slice], layout.grid, weight).double() for one in (k, v))
        pooled = q @ keys.transpose(-1, -2) * scale
        if spec.overview and bias is not None and numbers.shape[-1] > text:
            pooled = pooled + masked_cells(numbers, layout, spec)
        else:
            pooled = pooled + level[..., None]
            if spec.overview:
                pooled += tokens_outside(layout, spec).log()
        outside = torch.ones(layout.length, dtype=torch.bool)
        outside[layout.image_slice] = False
        scores = torch.cat([scores, pooled.masked_fill(outside[:, None], -torch.inf)], dim=-1)
        v = torch.cat([v, values], dim=2)
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    shares = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    return shares @ v, scores.logsumexp(dim=-1)


def tokens_outside(layout, spec):
    """(L, cells) float64: how many tokens of a cell an image query does not see, one pair of tokens at a time."""
    (height, width), d = layout.grid, spec.down_factor
    columns = math.ceil(width / d)
    count = torch.zeros(layout.length, math.ceil(height / d) * columns, dtype=torch.float64)
    for y, x, other_y, other_x in itertools.product(*[range(height), range(width)] * 2):
        if (y - other_y) ** 2 + (x - other_x) ** 2 >= spec.radius**2:
            count[layout.text + y * width + x, other_y // d * columns + other_x // d] += 1
    return count


def masked_cells(numbers, layout, spec):
    """(B|1, heads|1, L, cells): log of the sum of exp(bias) over what lies outside the window, cell by cell."""
    (height, width), d = layout.grid, spec.down_factor
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    outside = torch.ones(layout.length, layout.image, dtype=torch.bool)
    outside[layout.image_slice] = (places[:, None] - places).square().sum(dim=-1) >= spec.radius**2
    shares = numbers[..., layout.image_slice].exp() * outside
    cell = places[:, 0] // d * math.ceil(width / d) + places[:, 1] // d
    return torch.stack([shares[..., cell == one].sum(dim=-1) for one in range(int(cell.max()) + 1)], dim=-1).log()


@dataclass(frozen=True)
class Case:
    """One random call and its mask."""

    seed: int
    kind: str
    dtype: torch.dtype
    layout: SequenceLayout
    spec: ClearSpec
    batch: int
    heads: int
    masks: tuple[int, int]
    one_row: bool
    chunk_bytes: int | None

    def __str__(self):
        parts = [
            f"{self.seed}",
            self.kind,
            str(self.dtype).removeprefix("torch."),
            f"T{self.layout.text}-{self.layout.grid[0]}x{self.layout.grid[1]}-R{self.layout.reference}",
            f"r{self.spec.radius}d{self.spec.down_factor}",
            f"{self.batch}x{self.heads}",
            f"masks{self.masks[0]}x{self.masks[1]}",
        ]
        return "-".join(parts + ["one_row"] * self.one_row + [f"chunk{self.chunk_bytes}"] * bool(self.chunk_bytes))

    @classmethod
    def draw(cls, seed):
        draw = random.Random(seed)
        batch, heads = draw.choice([1, 1, 2, 3]), draw.choice([1, 2, 3])
        kind = draw.choice(["text", "free", "level", "pairs", "pairs"])
        longest = draw.choice([1, 8, 20, 27])
        layout = SequenceLayout(
            draw.choice([0, 1, 7, 64]), (draw.randint(1, longest), draw.randint(1, longest)), draw.choice([0, 0, 1, 30])
        )
        spec = ClearSpec(draw.choice([1, 2, 3, 8, 13, 80]), 1 if kind == "pairs" else draw.choice([1, 1, 2, 3]))
        return cls(
            seed,
            kind,
            draw.choice([torch.bool, torch.float32]),
            layout,
            spec,
            batch,
            heads,
            (draw.choice([1, batch]), draw.choice([1, heads])),
            draw.random() < 0.15,
            draw.choice([None, None, 1, 100_000]),
        )

    def bias(self):
        generator = torch.Generator().manual_seed(self.seed)
        layout = self.layout
        rows = 1 if self.one_row else layout.length
        bias = torch.randn(*self.masks, rows, layout.length, generator=generator)
        hidden = torch.rand(bias.shape, generator=generator) < 0.4
        bias = ~hidden if self.dtype == torch.bool else bias.masked_fill(hidden, -torch.inf)
        image = layout.image_slice
        queries = slice(None) if self.one_row else image
        if self.kind == "text":
            return bias[..., : layout.text]
        if self.kind == "free":
            bias[..., queries, image] = True if self.dtype == torch.bool else 0.0
        elif self.kind == "level":
            bias[..., queries, image] = bias[..., queries, image.start, None].clone()
        return bias

    def inputs(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.layout.length, 3, self.heads, 16)
        return torch.randn(shape, generator=generator).to(dtype).permute(2, 0, 3, 1, 4).unbind()

    def weight(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.spec.down_factor, self.spec.down_factor, generator=generator) / self.spec.down_factor**2

    def run(self, backend, dtype=torch.float32, **options):
        return clear_attention(
            *self.inputs(dtype),
            grid=self.layout.grid,
            spec=self.spec,
            scale=0.3,
            spatial_weight=self.weight(),
            reference_tokens=self.layout.reference,
            bias=self.bias(),
            backend=backend,
            **options,
        )

    @lru_cache(maxsize=4)  # noqa: B019 - four small results, until the tests end
    def expected(self, dtype=torch.float32, rounded=False, masked=True):
        """What should come out of the inputs in ``dtype``, with the mask rounded to it, or without the mask."""
        bias = self.bias() if masked else None
        if rounded and bias.is_floating_point():
            bias = bias.to(dtype)
        return written_out(*self.inputs(dtype), self.layout, self.spec, self.weight(), 0.3, bias)


def cases(number, **fixed):
    drawn = [Case.draw(seed) for seed in range(number)]
    return [
        pytest.param(case, id=str(case))
        for case in drawn
        if all(getattr(case, name) == value for name, value in fixed.items())
    ]
