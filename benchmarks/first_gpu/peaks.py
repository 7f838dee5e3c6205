"""8. Peak memory of each backend beside the forecast, in hidden states."""

from __future__ import annotations

from functools import partial
from typing import Any

from clear_core import ClearSpec, SequenceLayout
from clear_core.memory import ENGINE_COPIES, Activations

from ..timing import peak_bytes
from .bench import Bench, Measurement
from .contenders import backends
from .inputs import model_inputs
from .scale import Scale

SECTION = "Peak memory"


def measurements(scale: Scale) -> list[Measurement]:
    spec = ClearSpec(scale.radii[0])
    return [
        Measurement(f"{height} x {width}, {spec}, memory", SECTION, 3, partial(measure, (height, width), spec))
        for height, width in scale.peak_grids
    ]


def measure(grid: tuple[int, int], spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``runs``: ``peak_bytes`` of a call beside q, k and v, the result included, and ``states``, the same in hidden
    states; None where the system does not tell. ``planned``: hidden states that the forecast plans, with the result.
    """
    scale, layout = bench.scale, SequenceLayout(bench.scale.text, grid)
    shape = Activations(width=scale.heads * scale.head_dim, element_size=scale.dtype.itemsize)
    hidden = shape.hidden_bytes(layout.length)
    q, k, v = model_inputs(layout, bench)
    runs: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for one in backends(layout, spec, bench):
        # Plans that are kept and compiled kernels are no part of a call.
        _, reason = (None, one.refusal) if one.refusal else bench.attempt(one.name, partial(one.attention, q, k, v))
        peak = None
        if reason is None:
            measured, reason = bench.attempt(one.name, partial(_peak, partial(one.attention, q, k, v), bench))
            peak = None if measured is None else measured[0]
        if reason is not None:
            skipped[one.name] = reason
        else:
            runs[one.name] = {"peak_bytes": peak, "states": None if peak is None else round(peak / hidden, 2)}
    line = ", ".join(f"{name} {run['states'] if run['states'] is not None else '?'}" for name, run in runs.items())
    return {
        "grid": list(grid),
        "hidden_bytes": hidden,
        "planned": ENGINE_COPIES + 1,
        "runs": runs,
        "skipped": skipped,
        "line": f"hidden states, {ENGINE_COPIES + 1} planned: {line}",
    }


def _peak(call: Any, bench: Bench) -> tuple[int | None]:
    """The peak alone, in a tuple because it may be None: the result of the call is let go."""
    return (peak_bytes(call, bench.device)[1],)
