"""The guidance record as Markdown: three tables of methods, one of the seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ATTENTIONS = ("dense", "plain", "distilled")
"""In the order of a cell's figures."""

MEASURES: dict[str, Callable[[float], str]] = {
    "layout": lambda value: f"{value:.3f}",
    "form": lambda value: f"{value:.3f}",
    "found": lambda value: f"{100 * value:.0f} %",
    "surplus": lambda value: f"{value:.1f}",
    "seams": lambda value: f"{value:.2f}",
    "detail": lambda value: f"{value:.2f}",
}


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    many, few = len(record["scenes"]), record["few"]
    main, compared, beyond = record["main"], record["compared"], record["beyond"]
    return "\n\n".join(
        [
            methods_table(f"{main['side']} px, distilled windows, {many} scenes", main, ("distilled",)),
            methods_table(f"{compared['side']} px, dense / plain / distilled, {few} scenes", compared, ATTENTIONS),
            methods_table(f"{beyond['side']} px, distilled windows, {few} scenes", beyond, ("distilled",)),
            seconds_table(record["seconds"]),
        ]
    )


def methods_table(title: str, part: dict[str, Any], attentions: Sequence[str]) -> str:
    """A row for each method; the figures of the attentions stand side by side."""
    lines = table_head([title, *MEASURES])
    for row in part["references"]:
        lines.append(line([f"({row['method']})", *(form(row[name]) for name, form in MEASURES.items())]))
    for method in dict.fromkeys(row["method"] for row in part["rows"]):
        found = {row["attention"]: row for row in part["rows"] if row["method"] == method}
        cells = [
            " / ".join(form(found[one][name]) if one in found else "-" for one in attentions)
            for name, form in MEASURES.items()
        ]
        lines.append(line([method, *cells]))
    return "\n".join(lines)


def seconds_table(seconds: dict[str, Any]) -> str:
    """Milliseconds of steps and corrections."""
    kinds = list(seconds["rows"][0]["guidance"])
    lines = table_head(["attention", "px", "step, s", *(f"{kind}, ms" for kind in kinds), "largest share"])
    for row in seconds["rows"]:
        own = row["guidance"]
        share = max(own.values()) / (row["step"] + max(own.values()))
        cells = [row["attention"], str(row["side"]), f"{row['step']:.2f}"]
        lines.append(line([*cells, *(f"{1000 * own[kind]:.1f}" for kind in kinds), f"{100 * share:.1f} %"]))
    return "\n".join(lines)


def table_head(cells: Sequence[str], left: int = 1) -> list[str]:
    """The first two lines of a table; the first ``left`` columns hold words."""
    return [line(cells), "|" + " --- |" * left + " ---: |" * (len(cells) - left)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
