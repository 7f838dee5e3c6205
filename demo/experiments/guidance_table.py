"""The guidance record as Markdown: one table for each size, one of the seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ATTENTIONS = ("dense", "plain", "distilled")
"""In the order of a cell's figures."""

MEASURES = (("layout", "{:.3f}", 1), ("found", "{:.0f} %", 100), ("surplus", "{:.1f}", 1), ("seams", "{:.2f}", 1))
DETAIL = ("detail", "{:.2f}", 1)
HEAD = ("layout", "found", "surplus", "seams", "detail")


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    sizes = [
        (record["rows"], ATTENTIONS, [row for row in record["references"] if row["side"] == record["rows"][0]["side"]]),
        (
            record["beyond"],
            ("distilled",),
            [row for row in record["references"] if row["side"] == record["beyond"][0]["side"]],
        ),
    ]
    titles = [
        f"{rows[0]['side']} px, {scenes} scenes" + (": dense / windows as they are / distilled" if several else "")
        for (rows, _, _), scenes, several in zip(
            sizes, (len(record["scenes"]), record["scenes_beyond"]), (True, False), strict=True
        )
    ]
    parts = [size_table(title, *size) for title, size in zip(titles, sizes, strict=True)]
    return "\n\n".join([*parts, seconds_table(record["seconds"])])


def size_table(title: str, rows: Sequence[Any], attentions: Sequence[str], references: Sequence[Any]) -> str:
    """A row for each method; the figures of the attentions stand side by side."""
    lines = table_head([title, *HEAD])
    for row in references:
        lines.append(line([f"({row['method']})", *(figure(row, measure) for measure in (*MEASURES, DETAIL))]))
    for method in dict.fromkeys(row["method"] for row in rows):
        found = {row["attention"]: row for row in rows if row["method"] == method}
        lines.append(
            line(
                [
                    method,
                    *(
                        " / ".join(figure(found[one], measure) if one in found else "-" for one in attentions)
                        for measure in (*MEASURES, DETAIL)
                    ),
                ]
            )
        )
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


def figure(row: dict[str, Any], measure: tuple[str, str, int]) -> str:
    name, form, factor = measure
    return form.format(factor * row[name])


def table_head(cells: Sequence[str]) -> list[str]:
    return [line(cells), "| --- |" + " ---: |" * (len(cells) - 1)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
