"""Writes docs/compatibility.md from the records of the compatibility tests.

    python3 -m tests.support.compatibility_table

The records are those that the tests in tests/host/compatibility wrote, one for each ComfyUI; nothing else is looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import PROJECT

RECORDS = PROJECT / "tests" / "host" / "compatibility" / "records"
PAGE = PROJECT / "docs" / "compatibility.md"

BY_MODEL = ("Windows by model", "CLEAR Upscale by model")
"""Sections whose rows are models, with one rule for all of them."""

INTRODUCTION = """\
# Compatibility

Which models get what, and what becomes of the window beside what people already have in their graph. Each cell is the
answer of tests that ran in a real ComfyUI, on a CPU, with models of a few small blocks and random weights, built by the
host's own classes, and with the real packs; where two nodes patch the model, in both orders. The page is written from
the [records](../tests/host/compatibility/records) of those tests ([CONTRIBUTING.md](../CONTRIBUTING.md) says how); the
versions at its end say when they ran, and on which commit.

- **oracle**: the result is that of the same graph in which dense attention with the window's mask, in float64, has
  CLEAR's place; the number is the largest relative difference seen.
- **stock**: the result is that of the same graph without CLEAR.
- **one line**: the log gets exactly one line, which says so.
"""

REST = """\
## Not in the tables

No GPU took part, so the kernels of SageAttention, FlashAttention and Nunchaku did not run: the nodes and wrappers of
their packs are the real ones, the kernels are stand-ins. XLabs' own sampler (x-flux-comfyui) goes around everything
that patches a model: there is no window, and nothing of CLEAR is called that could say so; their ControlNets work
through ComfyUI's own nodes.
"""


def read_records(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """The records, newest ComfyUI first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("comfyui-*.json")]
    return sorted(
        records, key=lambda record: [int(part) for part in record["versions"]["ComfyUI"].split(".")], reverse=True
    )


def cell(row: dict[str, Any] | None) -> str:
    """One answer as a cell of the table."""
    if row is None:
        return "not tried"
    if row["outcome"] == "failed":
        return "**fails**"
    if row["outcome"] == "absent":
        return row["note"]
    mantissa, exponent = f"{row['error']:.0e}".split("e")
    size = f"{mantissa}e{int(exponent)}" if row["error"] else "bit by bit"
    words = [kind if kind == "one line" else f"{kind}, {size}" for kind in row["against"]]
    return "; ".join(words + [row["note"]] * bool(row["note"]))


def render(records: list[dict[str, Any]]) -> str:
    """The page."""
    answers = [{row["name"]: row for row in record["rows"]} for record in records]
    rows = {row["name"]: row for record in reversed(records) for row in record["rows"]}
    order = [name for record in records[:1] for name in (row["name"] for row in record["rows"])]
    order += [name for name in rows if name not in order]
    order.sort(key=lambda name: (*BY_MODEL, rows[name]["section"]).index(rows[name]["section"]))
    lines = [INTRODUCTION]
    for section in dict.fromkeys(rows[name]["section"] for name in order):
        of_section = [name for name in order if rows[name]["section"] == section]
        lines += [f"## {section}", ""]
        rule = rows[of_section[0]]["rule"]
        if section in BY_MODEL:
            lines += [f"{rule[0].upper()}{rule[1:]}.", "", f"| model | {titles(records)} |"]
        else:
            lines.append(f"| beside CLEAR Attention | what holds | {titles(records)} |")
        lines.append("| --- |" + " --- |" * (lines[-1].count("|") - 2))
        for name in of_section:
            first = [name.split(",")[0]] if section in BY_MODEL else [name, rows[name]["rule"]]
            lines.append(f"| {' | '.join(first + [cell(of.get(name)) for of in answers])} |")
        lines.append("")
    lines += [REST, "## Versions", ""]
    lines += [
        f"- {', '.join(f'{name} {version}' for name, version in in_order(record['versions']))}; {recorded(record)}"
        for record in records
    ]
    return "\n".join(lines) + "\n"


def in_order(versions: dict[str, str]) -> list[tuple[str, str]]:
    """ComfyUI, the packs by name, and what they run on."""
    below = ("torch", "python", "system")
    return sorted(versions.items(), key=lambda item: (item[0] != "ComfyUI", item[0] in below, item[0].lower()))


def recorded(record: dict[str, Any]) -> str:
    """Dates and commits of the runs that answered the rows, each with its number of rows, oldest first."""
    runs = Counter(row["recorded"] for row in record["rows"])
    return "recorded " + ", ".join(
        "{} at commit {} ({} rows)".format(*run.split(" "), count) for run, count in sorted(runs.items())
    )


def titles(records: list[dict[str, Any]]) -> str:
    return " | ".join(f"ComfyUI {record['versions']['ComfyUI']}" for record in records)


if __name__ == "__main__":
    PAGE.write_text(render(read_records()), encoding="utf-8")
    print(PAGE)
