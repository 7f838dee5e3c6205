"""Seconds of CLEAR attention by every backend, of dense attention and of the published row-major order.

    python -m benchmarks.attention --grid 128x128 --heads 4 --radius 8,16 --dtype bfloat16

Every run is compared with the oracle before it is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention, cost
from clear_core.attention import BACKENDS, explain_backend

from .row_major import row_major_attention
from .timing import busy, first_line, interleaved, peak_bytes, summary, write_record

DENSE, ROW_MAJOR = "sdpa", "row-major"
RUNS = (DENSE, ROW_MAJOR, *BACKENDS)
USUAL_RUNS = (DENSE, ROW_MAJOR, "dense", "gather", "flex", "auto")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


Attention = Callable[[Tensor, Tensor, Tensor], Any]
"""q, k and v to the output."""


def attention(name: str, layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> Attention:
    """One of ``RUNS``, or a backend, for one layout and window."""
    if name == DENSE:
        return F.scaled_dot_product_attention
    if name == ROW_MAJOR:
        return row_major_attention(layout, spec, device)
    return partial(clear_attention, grid=layout.grid, spec=spec, backend=name)


def error(out: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value if that is above 1."""
    return float((out[:, :1].float() - expected).abs().max() / expected.abs().max().clamp(min=1))


def measure(layout: SequenceLayout, spec: ClearSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Results of one grid and radius: errors and peak memory first, then the rounds."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(options.batch, layout.length, 3, options.heads, options.head_dim, generator=generator)
    q, k, v = (one.contiguous() for one in wide.to(device, dtype).permute(2, 0, 3, 1, 4))
    del wide
    # One head is enough for the oracle, which is quadratic and runs in float32.
    oracle = attention("dense", layout, spec, device)
    expected = oracle(q[:, :1].float(), k[:, :1].float(), v[:, :1].float())
    functions = {name: partial(attention(name, layout, spec, device), q, k, v) for name in options.runs}
    checks: dict[str, dict[str, Any]] = {}
    for name, function in functions.items():
        out = function()
        off = None if name == DENSE else error(out, expected)
        del out
        if off is not None and not off <= TOLERANCE[dtype]:
            raise SystemExit(f"{name} is off by {off:.2g} from the oracle at {layout.grid}, {spec}; nothing was timed.")
        _, peak = peak_bytes(function, device)
        checks[name] = {"error": off, "peak_bytes": peak}
    del expected
    clock = time.process_time if options.cpu_time else time.perf_counter
    with busy(options.busy):
        timed = summary(interleaved(functions, device, options.rounds, clock), DENSE)
    auto, _ = explain_backend(device, dtype, options.head_dim, layout.grid, spec)
    exact = cost.clear_pairs(layout, spec)
    return {
        "grid": list(layout.grid),
        "radius": spec.radius,
        "down_factor": spec.down_factor,
        "auto": auto,
        "exact_pairs": exact,
        "dense_over_exact": round(cost.dense_pairs(layout) / exact, 2),
        "runs": {name: {**timed[name], **checks[name]} for name in functions},
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table of one result."""
    height, width = result["grid"]
    print(
        f"\n{height} x {width} tokens, radius {result['radius']}: {result['dense_over_exact']:.1f} times fewer pairs "
        f"than dense attention; auto is {result['auto']}"
    )
    print(f"{'':>10} {'median':>12} {'speed-up':>9} {'peak':>9} {'error':>8}")
    for name, run in result["runs"].items():
        peak = "" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 2**20:.0f} MiB"
        off = "" if run["error"] is None else f"{run['error']:.1e}"
        print(f"{name:>10} {run['median_ms']:>9.1f} ms {run['speed_up']:>8.2f}x {peak:>9} {off:>8}")


def _grid(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=first_line(__doc__))
    parser.add_argument("--grid", type=_list_of(_grid), default="64x64", help="height x width in tokens, or several")
    parser.add_argument("--radius", type=_list_of(int), default="8,16,32", help="in tokens, or several")
    parser.add_argument("--down-factor", type=int, default=1, help="1 is without pooled keys")
    parser.add_argument("--text", type=int, default=512, help="text tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4, help="FLUX has 24")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=_list_of(str), default=",".join(USUAL_RUNS), help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count this process's CPU seconds, all threads "
        "together, in place of the clock's: for a CPU that others use at the same time",
    )
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    unknown = set(options.runs) - set(RUNS)
    if unknown:
        parser.error(f"--runs has {', '.join(sorted(unknown))}; expected some of {', '.join(RUNS)}")
    if DENSE not in options.runs:
        options.runs.insert(0, DENSE)
    if options.down_factor > 1 and ROW_MAJOR in options.runs:
        options.runs.remove(ROW_MAJOR)
    torch.set_num_threads(options.threads)
    results = []
    with torch.inference_mode():
        for height, width in options.grid:
            for radius in options.radius:
                layout = SequenceLayout(options.text, (height, width))
                results.append(measure(layout, ClearSpec(radius, options.down_factor), options))
                show(results[-1])
    if options.output:
        shown = {name: value for name, value in vars(options).items() if name not in ("output", "grid", "radius")}
        write_record(options.output, torch.device(options.device), shown, results)


if __name__ == "__main__":
    main()
