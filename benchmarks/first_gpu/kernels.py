"""6. Which kernels one layer of gathered attention runs, and what part of its time is copying."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from torch.profiler import ProfilerActivity, profile

from clear_core import ClearSpec, clear_attention

from ..timing import synchronize
from .bench import Bench, Measurement
from .inputs import model_inputs
from .scale import Scale

SECTION = "Kernels of one gathered layer"
SIZE = "2K"
MOST_NAMES = 15

KINDS = {
    "attention": ("fmha", "flash", "cudnn", "sdpa", "attention", "softmax", "gemm", "bmm"),
    "copy": ("index", "gather", "scatter", "copy", "cat", "memcpy", "memset", "where", "fill", "pad"),
}
"""Parts of a kernel's name by what it does; the first that fits counts, and the rest is "other"."""


def measurements(scale: Scale) -> list[Measurement]:
    spec = ClearSpec(scale.radii[0])
    return [Measurement(f"{SIZE}, {spec}, profile of gather", SECTION, 6, partial(measure, spec))]


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other")


def measure(spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``kernels``: name, kind, launches and ms; ``launches``; ``share``: of the kernels' time by kind; ``busy``: the
    kernels' time over the call's by the clock, profiler included."""
    found, reason = bench.attempt("gather", partial(_profiled, spec, bench))
    if found is None:
        return {"skipped": {"gather": reason}, "line": reason}
    kernels, seconds = found
    total = sum(one["ms"] for one in kernels) or 1e-9
    share = {
        kind: round(sum(one["ms"] for one in kernels if one["kind"] == kind) / total, 3) for kind in (*KINDS, "other")
    }
    launches = sum(one["launches"] for one in kernels)
    line = f"{launches} launches, {total:.3g} ms of kernels: " + ", ".join(f"{k} {v:.0%}" for k, v in share.items())
    return {
        "kernels": kernels[:MOST_NAMES],
        "launches": launches,
        "kernels_ms": round(total, 3),
        "share": share,
        "busy": round(total / 1e3 / seconds, 3),
        "line": line,
    }


def _profiled(spec: ClearSpec, bench: Bench) -> tuple[list[dict[str, Any]], float]:
    """Kernels of one call after a warm-up, the longest first, and the call's seconds; on a CPU torch's operations."""
    layout = bench.scale.layout(SIZE)
    q, k, v = model_inputs(layout, bench)
    call = partial(clear_attention, q, k, v, grid=layout.grid, spec=spec, backend="gather")
    call()
    on_card = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]) as profiler:
        synchronize(bench.device)
        begun = time.perf_counter()
        call()
        synchronize(bench.device)
        seconds = time.perf_counter() - begun
    totals: dict[str, dict[str, Any]] = {}
    for event in profiler.events() or []:
        if str(event.device_type).endswith("CUDA") != on_card:
            continue
        took = event.time_range.elapsed_us() if on_card else event.self_cpu_time_total
        one = totals.setdefault(event.name, {"name": event.name, "kind": kind_of(event.name), "launches": 0, "ms": 0.0})
        one["launches"] += 1
        one["ms"] += took / 1e3
    listed = sorted(totals.values(), key=lambda one: -one["ms"])
    return [{**one, "ms": round(one["ms"], 4)} for one in listed], seconds
