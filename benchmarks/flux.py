"""FLUX's layers from 1K to 8K on one device: attention by every backend, and a step of 19 double and 38 single blocks.

    python -m benchmarks.flux --output benchmarks/records/NAME.json

On a GPU: 24 heads of 128, bfloat16, 512 text tokens, radius 8, 16 and 32, with and without pooled keys. Nothing is
timed before it was found equal to the oracle on sampled rows. What cannot run is named with its reason. On a CPU the
defaults are small; they show that the command works, not how fast a GPU is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from clear_core import ClearSpec, SequenceLayout, clear_attention, cost
from clear_core.attention import explain_backend
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.choose import unavailable_reason
from clear_core.attention.pool import mean_weight, pool_tokens

from .attention import ORDINARY, ROW_MAJOR, TOLERANCE
from .row_major import row_major_attention
from .timing import interleaved, peak_bytes, synchronize, write_record

RUNS = (ORDINARY, ROW_MAJOR, "flex", "gather", "triton")
GRIDS = {"1K": (64, 64), "2K": (128, 128), "4K": (256, 256), "8K": (512, 512)}
DOUBLE_BLOCKS, SINGLE_BLOCKS = 19, 38
TEXT, MLP_RATIO, DOWN_FACTOR = 512, 4, 4

# What is asked most comes first, since the time is limited.
GPU_ORDER = ("4K", "2K", "8K", "1K")

# Ordinary attention of more tokens than these takes minutes on a CPU.
CPU_TOKENS = 5000

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Clock:
    """Minutes that are left, and what was not begun for want of them."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.left_out.append(what)
        return False


def skip_reason(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, spec: ClearSpec) -> str | None:
    """Why a run is left out, or None."""
    if name == ORDINARY:
        return None
    if name == ROW_MAJOR:
        return "the published row-major order is measured without pooled keys" if spec.pools else None
    return unavailable_reason(name, device, dtype, head_dim)


def attention(name: str, layout: SequenceLayout, spec: ClearSpec, device: torch.device) -> Attention:
    if name == ORDINARY:
        return F.scaled_dot_product_attention
    if name == ROW_MAJOR:
        return row_major_attention(layout, spec, device)
    return partial(clear_attention, grid=layout.grid, spec=spec, backend=name)


def sampled_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, spec: ClearSpec) -> float:
    """Largest difference from float32 in the first, middle and last image row of the first and last head.

    The whole oracle is quadratic, and would take longer than all that is measured.
    """
    height, width = layout.grid
    image, worst = layout.image_slice, 0.0
    for head in {0, q.shape[1] - 1}:
        one_q, keys, values = (one[:1, head : head + 1].float() for one in (q, k, v))
        if spec.pools:
            weight = mean_weight(spec.down_factor)
            # Pooled in the dtype, as every backend does.
            keys, values = (
                torch.cat([whole, pool_tokens(one[:1, head : head + 1, image], layout.grid, weight).float()], 2)
                for whole, one in ((keys, k), (values, v))
            )
        for row in {0, height // 2, height - 1}:
            rows = slice(image.start + row * width, image.start + (row + 1) * width)
            mask = image_rows_mask(range(row, row + 1), layout, spec, q.device)
            expected = F.scaled_dot_product_attention(one_q[:, :, rows], keys, values, attn_mask=mask)
            found = out[:1, head : head + 1, rows].float()
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))
    return worst


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a large matrix product reaches here, in 10**12 operations a second: the peak that shares refer to."""
    side = 512 if device.type == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device, dtype=dtype).unbind()
    seconds = interleaved({"matmul": lambda: a @ b}, device, 10)["matmul"]
    return 2 * side**3 / min(seconds) / 1e12


def failure(function: Callable[[], Any]) -> str | None:
    """What goes wrong when it runs, in one line; None where nothing does. One backend that breaks is a result."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return None


# ---- one layer ----


def layer(
    name: str, layout: SequenceLayout, spec: ClearSpec, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Attention of one grid and spec by every run that works."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    q, k, v = (
        torch.randn(1, options.heads, layout.length, options.head_dim, device=device, dtype=dtype) for _ in range(3)
    )
    functions: dict[str, Callable[[], Tensor]] = {}
    checked: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for run in options.runs:
        reason = skip_reason(run, device, dtype, options.head_dim, spec)
        if reason is None:
            function = partial(attention(run, layout, spec, device), q, k, v)
            reason = failure(function)
        if reason is None:
            off = None if run == ORDINARY else sampled_error(function(), q, k, v, layout, spec)
            if off is None or off <= TOLERANCE[dtype]:
                functions[run] = function
                checked[run] = {"error": off, "peak_bytes": peak_bytes(function, device)[1]}
            else:
                reason = f"it is off by {off:.2g} from the oracle"
        if reason is not None:
            skipped[run] = reason
    exact, ordinary = cost.clear_pairs(layout, spec), cost.dense_pairs(layout)
    runs = {}
    for run, seconds in interleaved(functions, device, options.rounds).items():
        flops = 4 * (ordinary if run == ORDINARY else exact) * options.heads * options.head_dim
        took = median(seconds)
        runs[run] = {
            "median_ms": round(took * 1e3, 3),
            "share_of_peak": round(flops / took / 1e12 / peak, 3),
            **checked[run],
        }
    return {
        "kind": "layer",
        "size": name,
        "grid": list(layout.grid),
        "radius": spec.radius,
        "down_factor": spec.down_factor,
        "dense_over_exact_pairs": round(ordinary / exact, 2),
        "auto": explain_backend(device, dtype, options.head_dim, layout.grid, spec)[0],
        "runs": runs,
        "skipped": skipped,
    }


# ---- a step ----


class DoubleBlock(nn.Module):
    """The linear layers of FLUX's double block, without norms, positions and modulation."""

    def __init__(self, width: int, heads: int, **kind: Any) -> None:
        super().__init__()
        self.heads = heads
        self.streams = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(width, 3 * width, **kind),
                    "out": nn.Linear(width, width, **kind),
                    "mlp": nn.Sequential(
                        nn.Linear(width, MLP_RATIO * width, **kind),
                        nn.GELU("tanh"),
                        nn.Linear(MLP_RATIO * width, width, **kind),
                    ),
                }
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor, attend: Attention) -> Tensor:
        parts = x.split([TEXT, x.shape[1] - TEXT], dim=1)
        qkv = torch.cat([stream["qkv"](part) for stream, part in zip(self.streams, parts, strict=True)], dim=1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2).split([TEXT, x.shape[1] - TEXT], dim=1)
        parts = [part + stream["out"](one) for stream, part, one in zip(self.streams, parts, attended, strict=True)]
        return torch.cat([part + stream["mlp"](part) for stream, part in zip(self.streams, parts, strict=True)], dim=1)


class SingleBlock(nn.Module):
    """The linear layers of FLUX's single block; V is a view with the stride of everything, as in ComfyUI."""

    def __init__(self, width: int, heads: int, **kind: Any) -> None:
        super().__init__()
        self.heads, self.widths = heads, (3 * width, MLP_RATIO * width)
        self.linear1 = nn.Linear(width, sum(self.widths), **kind)
        self.linear2 = nn.Linear(width + MLP_RATIO * width, width, **kind)

    def forward(self, x: Tensor, attend: Attention) -> Tensor:
        qkv, mlp = self.linear1(x).split(self.widths, dim=-1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=2))


def step(
    name: str, layout: SequenceLayout, spec: ClearSpec, runs: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Time of 19 double and 38 single blocks: one of each is timed, since all have the same shapes."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    width = options.heads * options.head_dim
    blocks = {
        "double": DoubleBlock(width, options.heads, device=device, dtype=dtype),
        "single": SingleBlock(width, options.heads, device=device, dtype=dtype),
    }
    x = torch.randn(1, layout.length, width, device=device, dtype=dtype)
    attentions = {run: attention(run, layout, spec, device) for run in runs}
    skipped: dict[str, str] = {}
    for run, attend in attentions.items():
        reason = failure(lambda: [block(x, attend) for block in blocks.values()])
        if reason is not None:
            skipped[run] = reason
    found: dict[str, dict[str, Any]] = {run: {} for run in runs if run not in skipped}
    for kind, block in blocks.items():
        functions = {run: partial(block, x, attentions[run]) for run in found}
        for run, function in functions.items():
            found[run][f"{kind}_peak_bytes"] = peak_bytes(function, device)[1]
        for run, seconds in interleaved(functions, device, options.rounds).items():
            found[run][f"{kind}_ms"] = round(median(seconds) * 1e3, 3)
    for one in found.values():
        one["step_ms"] = round(DOUBLE_BLOCKS * one["double_ms"] + SINGLE_BLOCKS * one["single_ms"], 1)
    return {
        "kind": "step",
        "size": name,
        "grid": list(layout.grid),
        "radius": spec.radius,
        "down_factor": spec.down_factor,
        "runs": found,
        "skipped": skipped,
    }


# ---- what people read ----


def show_layer(result: dict[str, Any]) -> None:
    pooled = f", pooled {result['down_factor']} x {result['down_factor']}" if result["down_factor"] > 1 else ""
    print(
        f"\n{result['size']} ({result['grid'][0]} x {result['grid'][1]} tokens), radius {result['radius']}{pooled}: "
        f"{result['dense_over_exact_pairs']:.1f} times fewer pairs; auto is {result['auto']}"
    )
    for name, run in result["runs"].items():
        peak = "" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 2**20:.0f} MiB"
        off = "" if run["error"] is None else f"off by {run['error']:.1e}"
        print(f"{name:>10} {run['median_ms']:>10.2f} ms {run['share_of_peak']:>7.1%} of peak {peak:>10} {off}")
    for name, reason in result["skipped"].items():
        print(f"{name:>10} skipped: {reason}")


def show_step(result: dict[str, Any]) -> None:
    print(
        f"\nstep at {result['size']}, radius {result['radius']} ({DOUBLE_BLOCKS} double and {SINGLE_BLOCKS} single blocks)"
    )
    ordinary = result["runs"].get(ORDINARY, {}).get("step_ms")
    for name, run in result["runs"].items():
        speed = f"{ordinary / run['step_ms']:.2f}x" if ordinary else ""
        print(f"{name:>10} {run['step_ms'] / 1e3:>9.3f} s {speed:>8}")
    for name, reason in result["skipped"].items():
        print(f"{name:>10} skipped: {reason}")


def main() -> None:
    def names(text: str) -> list[str]:
        return text.split(",")

    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flux", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument(
        "--sizes", type=names, default=",".join(GPU_ORDER) if on_gpu else "1K", help=f"some of {', '.join(GRIDS)}"
    )
    parser.add_argument("--radius", type=names, default="16,8,32" if on_gpu else "8", help="in tokens, or several")
    parser.add_argument("--runs", type=names, default=",".join(RUNS), help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--heads", type=int, default=24 if on_gpu else 2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5 if on_gpu else 3)
    parser.add_argument("--minutes", type=float, default=7.0, help="nothing is begun after these")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    for given, known, option in ((options.runs, RUNS, "--runs"), (options.sizes, GRIDS, "--sizes")):
        if unknown := set(given) - set(known):
            parser.error(f"{option} has {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    device = torch.device(options.device)
    results: list[dict[str, Any]] = []
    # Row-major attention is compiled for every size, as the published code does, and that is more than the usual limit.
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    with torch.inference_mode(), torch._dynamo.config.patch({limit: 64}):
        measure(device, options, results)
    if options.output:
        shown = {name: value for name, value in vars(options).items() if name != "output"}
        shown["triton"] = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
        write_record(options.output, device, shown, results)


def measure(device: torch.device, options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    clock = Clock(options.minutes)
    peak = matmul_tflops(device, getattr(torch, options.dtype))
    results.append({"kind": "peak", "matmul_tflops": round(peak, 3)})
    print(f"a large matrix product: {peak:.3g} TFLOP/s; shares of peak refer to it")
    for down_factor in (1, DOWN_FACTOR):
        for size in options.sizes:
            layout = SequenceLayout(TEXT, GRIDS[size])
            if device.type == "cpu" and layout.length > CPU_TOKENS:
                clock.left_out.append(f"{size}: too long for a CPU")
                continue
            for radius in map(int, options.radius):
                spec = ClearSpec(radius, down_factor)
                if not clock.allows(f"layer {size}, {spec}"):
                    continue
                results.append(layer(size, layout, spec, peak, options))
                show_layer(results[-1])
                runs = list(results[-1]["runs"])
                # One step for each size and for the released radius in the middle, or the only one.
                if down_factor == 1 and radius == int(options.radius[0]) and clock.allows(f"step {size}, {spec}"):
                    results.append(step(size, layout, spec, runs, options))
                    show_step(results[-1])
                synchronize(device)
    if clock.left_out:
        results.append({"kind": "left out", "what": clock.left_out})
        print(f"\nleft out: {'; '.join(clock.left_out)}")


if __name__ == "__main__":
    main()
