"""The record of sparse attention as Markdown, a table for each size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..guidance_table import line, table_head
from ..measure import mean

MEASURES = ("keys", "averages", "kept mass", "flow's error")


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    return "\n\n".join(table(part, part["rows"]) for part in record["sizes"])


def short_tables(record: dict[str, Any]) -> str:
    """The table of docs/sparse.md: the largest size, without the row that explains ``sol_attn``'s averages."""
    part = record["sizes"][-1]
    return table(part, [row for row in part["rows"] if "no averages" not in row["way"]])


def table(part: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Dense attention, then the ways by the window that has as many keys, then those without one."""
    levels = ", ".join(f"{level:g}" for level in part["levels"])
    scenes = f"{part['scenes']} scene{'s' if part['scenes'] > 1 else ''}"
    lines = table_head([f"{part['side']} px, {scenes}, σ {levels}", "keys as", "weights", *MEASURES], left=3)
    for row in sorted(rows, key=lambda row: (row["way"] != "dense", row["radius"] or 10**6)):
        like = f"radius {row['radius']}" if row["radius"] else ""
        lines.append(line([row["way"], like, row["weights"], *cells(row)]))
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    """Of ``MEASURES``."""
    averages = f"{row['averages']:.0f}" if row["averages"] else ""
    return [f"{row['keys']:.0f}", averages, f"{100 * row['mass']:.1f} %", f"{100 * mean(row['errors']):.2f} %"]
