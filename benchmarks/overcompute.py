"""How many query-key pairs are computed for each that is asked for: 2-D tiles, their halves, row-major order.

python -m benchmarks.overcompute
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from clear_core import ClearSpec, SequenceLayout, cost
from clear_core.attention.tiling.plan import tile_plan
from clear_core.progress import bar

from .row_major import visited_pairs
from .timing import first_line, write_record

GRIDS = {
    "1K": (64, 64),
    "2K": (128, 128),
    "4K": (256, 256),
    "8K": (512, 512),
    "52x76": (52, 76),
    "48x84": (48, 84),
    "68x120": (68, 120),
    "90x160": (90, 160),
    "144x256": (144, 256),
}
RADII = (8, 16, 32)
CPU = torch.device("cpu")


def measure(text: int) -> list[dict[str, Any]]:
    """One row for each grid and radius; the plan's time is the best of five new constructions."""
    rows: list[dict[str, Any]] = []
    for name, grid in bar(GRIDS.items(), unit="grid", leave=False):
        for radius in RADII:
            layout, spec = SequenceLayout(text, grid), ClearSpec(radius)
            plan, exact = tile_plan(layout, spec, CPU), cost.clear_pairs(layout, spec)
            halves = tile_plan(layout, spec, CPU, halves=True)
            rows.append(
                {
                    "grid": name,
                    "radius": radius,
                    "exact_pairs": exact,
                    "dense_over_exact": round(cost.dense_pairs(layout) / exact, 2),
                    "row_major": round(visited_pairs(layout, spec) / exact, 2),
                    "tiles": round(cost.overcompute(plan), 2),
                    "half_tiles": round(cost.overcompute(halves), 2),
                    "plan_bytes": plan.nbytes,
                    "plan_ms": round(min(_plan_seconds(layout, spec) for _ in range(5)) * 1e3, 2),
                }
            )
    return rows


def _plan_seconds(layout: SequenceLayout, spec: ClearSpec) -> float:
    start = time.perf_counter()
    tile_plan.__wrapped__(layout, spec, CPU)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overcompute", description=first_line(__doc__))
    parser.add_argument("--text", type=int, default=512, help="text tokens")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    rows = measure(options.text)
    columns = ("grid", "radius", "dense", "row-major", "tiles", "halves", "plan, KB", "plan, ms")
    print(" ".join(f"{name:>9}" for name in columns))
    for row in rows:
        ratios = (row["dense_over_exact"], row["row_major"], row["tiles"], row["half_tiles"])
        plan = f"{row['plan_bytes'] / 1024:>9.0f} {row['plan_ms']:>9.1f}"
        print(f"{row['grid']:>9} {row['radius']:>9} {' '.join(f'{one:>9.2f}' for one in ratios)} {plan}")
    if options.output:
        write_record(options.output, CPU, {"text": options.text}, rows)


if __name__ == "__main__":
    main()
