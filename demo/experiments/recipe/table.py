"""The record of the recipes as Markdown."""

from __future__ import annotations

from typing import Any

from ..guidance_table import line, table_head

DIGITS = {"layout": 4, "form": 4, "found": 0, "surplus": 1, "detail": 2, "colour": 1}


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md, one for each strength."""
    made: list[str] = []
    for strength in dict.fromkeys(row["strength"] for row in record["rows"]):
        head = f"{record['side']} px, {way(strength)}, {record['scenes']} scenes"
        lines = table_head([head, *DIGITS])
        for row in record["rows"]:
            if row["strength"] == strength:
                cells = {name: f"{row[name]:.{digits}f}" for name, digits in DIGITS.items()}
                lines.append(line([row["recipe"], *(cells | {"found": f"{100 * row['found']:.0f} %"}).values()]))
        made.append("\n".join(lines))
    return "\n\n".join(made)


def way(strength: float) -> str:
    return "from noise" if strength == 1 else f"SDEdit {strength:g}"
