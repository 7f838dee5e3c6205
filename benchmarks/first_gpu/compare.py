"""Times several ways to compute one layer, side by side on the same tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from torch import Tensor

from clear_core import ClearSpec, SequenceLayout

from ..attention import TOLERANCE
from ..flux import sampled_error
from ..timing import interleaved, synchronize
from .bench import Bench
from .inputs import model_inputs

# Calls back to back between two waits for the card: a model does not wait after each, and short ones would be lost.
_SECONDS_OF_CALLS = 0.02
_MOST_CALLS = 50

# A round of all runs from which on two rounds have to do: dense attention at 8K.
_LONG_MS = 2000

Attention = Callable[[Tensor, Tensor, Tensor], Any]
"""q, k and v, (B, heads, L, D), to the output."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    Attributes:
        name: As in the tables.
        attention: q, k and v to the output. Raises an error if it cannot run here.
        keys: Keys that an image query sees, on average.
        pairs: Query-key pairs that are asked for, of all its queries.
        spec: Window that its result has to agree with; None if it computes something else.
        refusal: Why it cannot run, if that is known.
    """

    name: str
    attention: Attention
    keys: float
    pairs: float
    spec: ClearSpec | None = None
    refusal: str | None = None


def compare(contenders: list[Contender], layout: SequenceLayout, bench: Bench) -> dict[str, Any]:
    """Times of those that run and are right, and the reasons of the others.

    Returns:
        ``runs`` by name: ``median_ms``; ``first_ms`` and ``call_ms`` of the first and second call; ``keys_per_query``;
        ``share_of_peak`` (None if the peak is not known); ``error``, the largest difference from the oracle (None if it
        computes something else). ``skipped``: reasons by name. ``line``: the figures in one line.
    """
    q, k, v = model_inputs(layout, bench)
    functions: dict[str, Callable[[], Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for one in contenders:
        reason = one.refusal
        if reason is None:
            tried, reason = bench.attempt(one.name, partial(_tried, one, (q, k, v), layout, bench))
            if tried is not None:
                if tried["error"] is None or tried["error"] <= TOLERANCE[bench.scale.dtype]:
                    runs[one.name] = tried
                    functions[one.name] = partial(_repeated, partial(one.attention, q, k, v), tried["calls"])
                else:
                    reason = f"it is off by {tried['error']:.2g} from the oracle"
        if reason is not None:
            skipped[one.name] = reason
    by_name = {one.name: one for one in contenders}
    rounds = bench.scale.rounds if sum(run["call_ms"] for run in runs.values()) < _LONG_MS else 2
    timed = interleaved(functions, bench.device, rounds)
    for name, seconds in timed.items():
        took = median(seconds) / runs[name]["calls"]
        tflops = 4 * by_name[name].pairs * bench.scale.heads * bench.scale.head_dim / took / 1e12
        peak = bench.peak_tflops
        runs[name] |= {
            "median_ms": round(took * 1e3, 4),
            "keys_per_query": round(by_name[name].keys, 1),
            "share_of_peak": None if peak is None else round(tflops / peak, 3),
        }
    return {"grid": list(layout.grid), "runs": runs, "skipped": skipped, "line": line_of(runs, skipped)}


def _tried(
    one: Contender, tensors: tuple[Tensor, Tensor, Tensor], layout: SequenceLayout, bench: Bench
) -> dict[str, Any]:
    """A first call, which may compile, the difference from the oracle, and how many calls are timed at once."""
    begun = time.perf_counter()
    out = one.attention(*tensors)
    synchronize(bench.device)
    first = time.perf_counter() - begun
    error = None if one.spec is None else sampled_error(out, *tensors, layout, one.spec)
    del out
    begun = time.perf_counter()
    one.attention(*tensors)
    synchronize(bench.device)
    took = max(time.perf_counter() - begun, 1e-6)
    calls = 1 if bench.device.type == "cpu" else min(_MOST_CALLS, math.ceil(_SECONDS_OF_CALLS / took))
    return {"first_ms": round(first * 1e3, 2), "call_ms": round(took * 1e3, 3), "error": error, "calls": calls}


def _repeated(call: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        call()


def line_of(runs: dict[str, dict[str, Any]], skipped: dict[str, str]) -> str:
    """Milliseconds of each run, and who is missing, in one line."""
    parts = [f"{name} {run['median_ms']:.4g} ms" for name, run in runs.items()]
    return "; ".join([", ".join(parts)] * bool(parts) + [f"{name}: {reason}" for name, reason in skipped.items()])


def no_attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """For a contender that is refused."""
    raise RuntimeError("refused")
