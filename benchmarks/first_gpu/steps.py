"""7. A whole step of FLUX.1's 19 double and 38 single blocks, with dense attention and with windows."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from clear_core import ClearSpec

from ..attention import DENSE
from ..flux_step import step
from .bench import Bench, Measurement
from .contenders import backends
from .layers import MAIN_SIZES
from .scale import Scale

SECTION = "A whole step"


def measurements(scale: Scale) -> list[Measurement]:
    spec = ClearSpec(scale.radii[0])
    return [Measurement(f"{size}, {spec}, step", SECTION, 10, partial(measure, size, spec)) for size in MAIN_SIZES]


def measure(size: str, spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``runs``: ``double_ms``, ``single_ms``, ``step_ms`` and ``speed_up`` beside dense attention."""
    scale, layout = bench.scale, bench.scale.layout(size)
    there = backends(layout, spec, bench)
    skipped = {one.name: one.refusal for one in there if one.refusal is not None}
    options = argparse.Namespace(
        device=str(bench.device),
        dtype=str(scale.dtype).removeprefix("torch."),
        heads=scale.heads,
        head_dim=scale.head_dim,
        rounds=scale.rounds,
    )
    names = [DENSE, *(one.name for one in there if one.refusal is None)]
    found, reason = bench.attempt("step", lambda: step(size, layout, spec, names, options))
    if found is None:
        return {"size": size, "runs": {}, "skipped": {"step": reason}, "line": reason}
    runs = found["runs"]
    for run in runs.values():
        run["speed_up"] = round(runs[DENSE]["step_ms"] / run["step_ms"], 2) if DENSE in runs else None
    line = ", ".join(f"{name} {run['step_ms'] / 1e3:.3g} s" for name, run in runs.items())
    return {**found, "runs": runs, "skipped": {**skipped, **found["skipped"]}, "line": line}
