"""Which constants a record says to change, each with the measured reason. Figures in, sentences out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, exp, log
from typing import Any

from . import chunks, exactness, layers

WORTH = 1.05
"""Times as fast that a change has to make something: less is noise."""

Results = Mapping[str, dict[str, Any]]
"""Results by the key of their measurement."""


@dataclass(frozen=True)
class Advice:
    """One constant.

    Attributes:
        place: The constant and its file.
        now: Its value.
        better: The value to take; the same to keep it.
        reason: What was measured.
    """

    place: str
    now: str
    better: str
    reason: str

    @property
    def changes(self) -> bool:
        return self.now != self.better

    def __str__(self) -> str:
        what = (
            f"Change {self.place} from {self.now} to {self.better}"
            if self.changes
            else f"Keep {self.place}, {self.now}"
        )
        return f"{what}: {self.reason}."


def advice(results: Results) -> list[Advice]:
    """All that can be said; changes first."""
    given = [
        *wrong_backends(results),
        *auto(results),
        *block_shapes(results),
        *chunk_budget(results),
        *query_tiles(results),
        *cudnn(results),
        *planned_memory(results),
    ]
    return sorted(given, key=lambda one: not one.changes)


def wrong_backends(results: Results) -> list[Advice]:
    """Backends that run and are not exact."""
    return [
        Advice(
            f"`unavailable` of the backend {one['backend']} (clear_core/attention/backends)",
            f"offering {one['dtype']}",
            "refusing it",
            f"it is off by {one['error']:.2g} where {one['tolerance']:g} is allowed",
        )
        for one in of_section(results, exactness.SECTION)
        if "error" in one and not one["exact"]
    ]


def auto(results: Results) -> list[Advice]:
    """The fastest backend over all layers, of those that were exact wherever they ran."""
    wrong = {one["backend"] for one in of_section(results, exactness.SECTION) if "error" in one and not one["exact"]}
    measured = [one for one in of_section(results, layers.SECTION) if one.get("auto") in one.get("runs", {})]
    if not measured:
        return []
    now = Counter(one["auto"] for one in measured).most_common(1)[0][0]
    measured = [one for one in measured if one["auto"] == now]
    gains: dict[str, dict[str, float]] = {}
    for one in measured:
        for name in one["runs"]:
            gains.setdefault(name, {})[layer_name(one)] = time_of(one, now) / time_of(one, name)
    # By fewer layers than the present one was measured at, nothing is decided.
    means = {
        name: exp(sum(map(log, ratios.values())) / len(ratios))
        for name, ratios in gains.items()
        if name not in wrong and len(ratios) == len(measured)
    }
    place = "what `auto` takes (`preferred` of the backends, order of REGISTRY in clear_core/attention/choose.py)"
    rivals = {name: mean for name, mean in means.items() if name != now}
    if not rivals:
        return [Advice(place, now, now, f"nothing else ran at all {len(measured)} layers")]
    best = max(rivals, key=rivals.__getitem__)
    slowest = min(gains[best], key=gains[best].__getitem__)
    reason = (
        f"{best} is {rivals[best]:.2f} times as fast as {now} on average of {len(measured)} layers, "
        f"at worst {gains[best][slowest]:.2f} times ({slowest})"
    )
    return [Advice(place, now, best if rivals[best] >= WORTH or now in wrong else now, reason)]


def block_shapes(results: Results) -> list[Advice]:
    """The Triton kernel's candidates by their times."""
    given: list[Advice] = []
    for one in results.values():
        if one.get("written") and one["runs"]:
            order = sorted(one["runs"], key=lambda name: time_of(one, name))
            written = [name for name in one["written"] if name in one["runs"]]
            kept = time_of(one, written[0]) < WORTH * time_of(one, order[0])
            reason = "; ".join(f"{name} {time_of(one, name):.4g} ms" for name in order)
            place = "the first of `candidate_shapes` (clear_core/attention/backends/triton/block_shapes.py)"
            given.append(Advice(place, written[0], written[0] if kept else order[0], f"at {one['size']} {reason}"))
    return given


def chunk_budget(results: Results) -> list[Advice]:
    """Gathered attention's budget; the smaller one of two that are as fast."""
    given: list[Advice] = []
    for one in results.values():
        if one.get("budgets") and one["runs"]:
            times = {one["budgets"][name]: time_of(one, name) for name in one["runs"]}
            fastest = min(times.values())
            better = min(number for number, took in times.items() if took <= fastest * WORTH)
            now = one["default_bytes"]
            if now in times and times[now] <= fastest * WORTH:
                better = now
            reason = ", ".join(f"{chunks.bytes_text(number)} {times[number]:.4g} ms" for number in sorted(times))
            place = f"`{one['constant']}` (clear_core/attention/budget.py)"
            given.append(Advice(place, chunks.bytes_text(now), chunks.bytes_text(better), reason))
    return given


def query_tiles(results: Results) -> list[Advice]:
    """Gathered attention's query tiles, for each radius that was measured."""
    given: list[Advice] = []
    for one in results.values():
        if one.get("tiles") and one["runs"]:
            times = {tuple(one["tiles"][name]): time_of(one, name) for name in one["runs"]}
            best, now = min(times, key=times.__getitem__), tuple(one["default_tile"])
            kept = now in times and times[now] < WORTH * times[best]
            reason = ", ".join(f"{y} x {x} {took:.4g} ms" for (y, x), took in times.items())
            place = f"`query_tile` for radius {one['radius']} (clear_core/attention/tiling/classes.py)"
            now_text, best_text = (f"{y} x {x}" for y, x in (now, best))
            given.append(Advice(place, now_text, now_text if kept else best_text, reason))
    return given


def cudnn(results: Results) -> list[Advice]:
    """Whether gathered attention does better where cuDNN may not answer."""
    given: list[Advice] = []
    usual, without = (f"gather, {name}" for name in (chunks.USUAL, chunks.WITHOUT_CUDNN))
    for one in results.values():
        runs = one.get("runs") or {}
        if usual in runs and without in runs:
            gain = time_of(one, usual) / time_of(one, without)
            reason = (
                f"{time_of(one, usual):.4g} ms (first call {runs[usual]['first_ms']:.3g}) with it, "
                f"{time_of(one, without):.4g} ms (first call {runs[without]['first_ms']:.3g}) without"
            )
            place = "cuDNN in gathered attention (clear_core/attention/backends/gather.py)"
            given.append(Advice(place, "allowed", "not allowed" if gain >= WORTH else "allowed", reason))
    return given


def planned_memory(results: Results) -> list[Advice]:
    """Hidden states that the forecast plans, beside what the backends took on the largest grid that was measured."""
    measured = [one for one in results.values() if one.get("planned") and one.get("runs")]
    if not measured:
        return []
    largest = max(measured, key=lambda one: one["hidden_bytes"])
    states = {name: run["states"] for name, run in largest["runs"].items() if run["states"] is not None}
    if not states:
        return []
    planned, most = largest["planned"], max(states.values())
    # One of them is the result.
    better = max(planned, ceil(most)) - 1
    grid = " x ".join(map(str, largest["grid"]))
    reason = f"with the result, at {grid}: " + ", ".join(f"{name} {one:.3g}" for name, one in states.items())
    over = [
        f"{name} {run['states']:.3g} at {one['grid'][0]} x {one['grid'][1]}"
        for one in measured
        for name, run in one["runs"].items()
        if one is not largest and (run["states"] or 0) > one["planned"]
    ]
    reason += f"; on smaller grids above the plan: {', '.join(over)}" if over else ""
    return [Advice("`ENGINE_COPIES` (clear_core/memory.py)", str(planned - 1), str(better), reason)]


# ---- reading results ----


def of_section(results: Results, section: str) -> list[dict[str, Any]]:
    """Results under one heading."""
    return [one for one in results.values() if one.get("section") == section]


def layers_in_order(results: Results) -> list[dict[str, Any]]:
    """Results of single layers by size; in each size dense attention first, then windows, then those with pooling."""
    found = [one for one in of_section(results, layers.SECTION) if "size" in one]
    return sorted(found, key=lambda one: (one["size"], one["down_factor"] or 0, one["radius"] or 0))


def time_of(result: dict[str, Any], name: str) -> float:
    """Milliseconds of one run, above 0."""
    return max(result["runs"][name]["median_ms"], 1e-6)


def layer_name(result: dict[str, Any]) -> str:
    """Size and window of a layer."""
    pooled = f", pooled {result['down_factor']} x {result['down_factor']}" if (result["down_factor"] or 1) > 1 else ""
    return f"{result['size']}, radius {result['radius']}{pooled}"
