"""A record as Markdown."""

from __future__ import annotations

from typing import Any

from . import chunks, exactness, first_use, kernels, layers, peaks, steps
from .advice import Advice, layer_name, layers_in_order, of_section
from .journal import Journal
from .published import NATTEN_4K, SOURCE

REHEARSAL = "**A rehearsal at small sizes: it shows that the command works. No figure here says anything about speed.**"


def table(journal: Journal, given: list[Advice], picture: str) -> str:
    """The whole page.

    Args:
        given: What follows from the record.
        picture: File name of the chart.
    """
    about = journal.identity
    results = journal.results
    lines = [f"# First run on {about.get('device', 'an unknown device')}", ""]
    lines += [REHEARSAL, ""] * (about.get("kind of run") != "full")
    lines += [", ".join(f"{name}: {value}" for name, value in about.items() if name != "device"), ""]
    lines += [f"![Milliseconds of one layer]({picture})", ""]
    lines += ["## What follows", "", *(f"- {one}" for one in given or ["nothing yet"]), ""]
    if journal.left_out:
        lines += [f"Left out for lack of time: {'; '.join(journal.left_out)}.", ""]
    lines += section(exactness.SECTION, exactness_rows(of_section(results, exactness.SECTION)))
    lines += section(
        layers.SECTION,
        timing_rows(layers_in_order(results)) + published_rows(),
        "Keys per query are an image query's, on average. `sdpa` is dense attention; other libraries compute "
        "something else than CLEAR's windows. First call: with compiling, where it compiles.",
    )
    for name in (layers.PAIR_SECTION, chunks.SECTION):
        lines += section(name, timing_rows(of_section(results, name)))
    lines += section(first_use.SECTION, first_use_rows(of_section(results, first_use.SECTION)))
    lines += section(kernels.SECTION, kernel_rows(of_section(results, kernels.SECTION)))
    lines += section(steps.SECTION, step_rows(of_section(results, steps.SECTION)))
    lines += section(peaks.SECTION, peak_rows(of_section(results, peaks.SECTION)))
    missing = reasons(journal)
    lines += ["## What did not run, and why", "", *missing, ""] if missing else []
    return "\n".join(lines)


def section(name: str, rows: list[list[str]], note: str = "") -> list[str]:
    """A heading and a table; nothing without rows below the first, which names the columns."""
    if len(rows) < 2:
        return []
    head, *body = rows
    lines = [f"## {name}", "", *([note, ""] if note else []), _row(head), _row(["---"] * len(head))]
    return [*lines, *map(_row, body), ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def exactness_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["backend", "numbers", "largest difference", "allowed", "cases"]]
    for one in results:
        if "backend" in one:
            off = f"{one['error']:.1e}" if "error" in one else one["reason"]
            wrong = "" if one["exact"] or "error" not in one else " **WRONG**"
            rows.append([one["backend"], one["dtype"], off + wrong, f"{one['tolerance']:g}", str(len(one["errors"]))])
    return rows


def timing_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Figures of :func:`.compare.compare`."""
    rows = [["layer", "run", "keys per query", "ms", "first call, ms", "share of peak", "off by"]]
    for one in results:
        for name, run in (one.get("runs") or {}).items():
            share = "" if run["share_of_peak"] is None else f"{run['share_of_peak']:.1%}"
            off = "" if run["error"] is None else f"{run['error']:.1e}"
            keys, took = f"{run['keys_per_query']:.0f}", f"{run['median_ms']:.4g}"
            rows.append([_layer(one), name, keys, took, f"{run['first_ms']:.4g}", share, off])
    return rows


def _layer(one: dict[str, Any]) -> str:
    grid = " x ".join(map(str, one["grid"]))
    if one.get("radius") is None or "size" not in one:
        return f"{one.get('size', chunks.SIZE)} ({grid})"
    return f"{layer_name(one)} ({grid})"


def published_rows() -> list[list[str]]:
    return [
        [f"4K, {SOURCE}", one["name"], str(one["keys_per_query"]), f"{one['median_ms']:g}", "", "", ""]
        for one in NATTEN_4K
    ]


def first_use_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["backend", "cache", "import of torch, s", "first call, s", "second call, ms"]]
    for one in results:
        for cache, run in (one.get("runs") or {}).items():
            second = f"{run['second'] * 1e3:.3g}"
            rows.append([one["backend"], cache, f"{run['torch']:.1f}", f"{run['first']:.1f}", second])
    return rows


def kernel_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["kernel", "does", "launches", "ms"]]
    for one in results:
        for kernel in one.get("kernels", []):
            name = kernel["name"][:80]
            rows.append([f"`{name}`", kernel["kind"], str(kernel["launches"]), f"{kernel['ms']:.3g}"])
        if "share" in one:
            share = ", ".join(f"{kind} {part:.0%}" for kind, part in one["share"].items())
            rows.append([f"all: {share}; busy {one['busy']:.0%}", "", str(one["launches"]), f"{one['kernels_ms']:.3g}"])
    return rows


def step_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["size", "attention", "double block, ms", "single block, ms", "step, s", "times as fast as dense"]]
    for one in results:
        for name, run in (one.get("runs") or {}).items():
            speed = "" if run["speed_up"] is None else f"{run['speed_up']:.2f}"
            blocks = [f"{run['double_ms']:.3g}", f"{run['single_ms']:.3g}", f"{run['step_ms'] / 1e3:.3g}"]
            rows.append([one["size"], name, *blocks, speed])
    return rows


def peak_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["grid", "backend", "hidden states, result included", "planned", "MiB"]]
    for one in results:
        for name, run in (one.get("runs") or {}).items():
            known = run["states"] is not None
            states, peak = (f"{run['states']:.2f}", f"{run['peak_bytes'] / 2**20:.0f}") if known else ("unknown", "")
            rows.append([" x ".join(map(str, one["grid"])), name, states, str(one["planned"]), peak])
    return rows


def reasons(journal: Journal) -> list[str]:
    """What is missing: one line for each run and reason, with the first measurements it is missing in."""
    where: dict[str, list[str]] = {}
    for key, one in journal.results.items():
        if "failed" in one:
            where.setdefault(f"{key}: {one['failed']}", [])
        for name, reason in (one.get("skipped") or {}).items():
            where.setdefault(f"{name}: {reason}", []).append(key)
    return [
        f"- {what}"
        + (f" ({'; '.join(keys[:2])}{f' and {len(keys) - 2} more' if len(keys) > 2 else ''})" if keys else "")
        for what, keys in where.items()
    ]
