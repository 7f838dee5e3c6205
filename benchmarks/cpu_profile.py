"""Where the time of gathered attention goes on a CPU, beside dense attention: one thread, one layer.

python -m benchmarks.cpu_profile
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention, cost

from .timing import first_line, write_record

CPU = torch.device("cpu")
CASES = (((64, 64), 8, 4), ((64, 64), 32, 4), ((128, 128), 8, 4), ((128, 128), 16, 4), ((256, 256), 8, 1))
"""Grid, radius and heads."""

TEXT, HEAD_DIM, ROUNDS = 512, 128, 3
PARTS = ("text rows", "tiles without a mask", "tiles with a mask")


def measure(grid: tuple[int, int], radius: int, heads: int) -> dict[str, Any]:
    """Milliseconds of dense attention and of the parts of a gathered layer, and the pairs a second of each."""
    layout, spec = SequenceLayout(TEXT, grid), ClearSpec(radius)
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, heads, layout.length, HEAD_DIM)
    q, k, v = torch.randn(shape, generator=generator).to(torch.bfloat16).unbind()
    attention = F.scaled_dot_product_attention
    rounds = [_round(q, k, v, layout, spec, attention) for _ in range(1 + ROUNDS)][1:]
    dense, gathered = (median(one[name][0] for one in rounds) for name in ("dense", "gathered"))
    asked = heads * cost.clear_pairs(layout, spec)
    parts = {name: median(one[name][0] for one in rounds) for name in PARTS}
    pairs = {name: rounds[0][name][1] for name in PARTS}
    parts["copies, and calling"] = gathered - sum(parts.values())
    return {
        "grid": list(grid),
        "radius": radius,
        "heads": heads,
        "dense_ms": round(dense * 1e3, 1),
        "gathered_ms": round(gathered * 1e3, 1),
        "speed_up": round(dense / gathered, 2),
        "dense_over_asked": round(cost.dense_pairs(layout) * heads / asked, 2),
        "computed_over_asked": round(sum(pairs.values()) / asked, 2),
        "share": {name: round(seconds / gathered, 3) for name, seconds in parts.items()},
        "pairs_per_us": {
            "dense": round(cost.dense_pairs(layout) * heads / dense / 1e6),
            **{name: round(pairs[name] / parts[name] / 1e6) for name in PARTS if parts[name] > 0},
        },
    }


def _round(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, spec: ClearSpec, attention: Callable[..., Tensor]
) -> dict[str, tuple[float, int]]:
    """Seconds and query-key pairs: ``dense``, ``gathered`` (the whole layer), and its calls of attention by part."""
    parts: dict[str, tuple[float, int]] = dict.fromkeys(PARTS, (0.0, 0))

    def timed(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float | None = None) -> Tensor:
        begun = time.perf_counter()
        out = attention(q, k, v, attn_mask=attn_mask, scale=scale)
        seconds, pairs = parts[_part(k, attn_mask, layout)]
        seconds, pairs = seconds + time.perf_counter() - begun, pairs + q.shape[:3].numel() * k.shape[2]
        parts[_part(k, attn_mask, layout)] = seconds, pairs
        return out

    begun = time.perf_counter()
    attention(q, k, v)
    dense = time.perf_counter() - begun
    with mock.patch.object(F, "scaled_dot_product_attention", timed):
        begun = time.perf_counter()
        clear_attention(q, k, v, grid=layout.grid, spec=spec, backend="gather")
        gathered = time.perf_counter() - begun
    return {**parts, "dense": (dense, 0), "gathered": (gathered, 0)}


def _part(k: Tensor, mask: Tensor | None, layout: SequenceLayout) -> str:
    if k.shape[2] == layout.length and mask is None:
        return PARTS[0]
    return PARTS[1] if mask is None else PARTS[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_profile", description=first_line(__doc__))
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for grid, radius, heads in CASES:
            results.append(measure(grid, radius, heads))
            shares = ", ".join(f"{name} {share:.0%}" for name, share in results[-1]["share"].items())
            rates = ", ".join(f"{name} {rate}" for name, rate in results[-1]["pairs_per_us"].items())
            print(f"{grid[0]} x {grid[1]}, radius {radius}: {results[-1]['speed_up']} times as fast as dense, {shares}")
            print(f"  pairs a microsecond: {rates}")
    if options.output:
        settings = {"text": TEXT, "head_dim": HEAD_DIM, "dtype": "bfloat16", "rounds": ROUNDS}
        write_record(options.output, CPU, settings, results)


if __name__ == "__main__":
    main()
