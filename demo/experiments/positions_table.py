"""The record of positions as Markdown: a table of flows, and one of pictures for each setting."""

from __future__ import annotations

from typing import Any

from .guidance_table import MEASURES, line, table_head
from .hybrid_record import spread

KEPT = ("found", "surplus", "layout", "form", "seams", "detail")


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    return "\n\n".join(
        [flows_table(part) for part in record["flows"]]
        + [flows_table(part, ", before the last stage") for part in record["flows_before"]]
        + [pictures_table(part, len(record["scenes"])) for part in record["settings"]]
    )


def flows_table(part: dict[str, Any], when: str = "") -> str:
    """A row for each method."""
    levels = list(part["rows"][0]["mse"])
    lines = table_head(
        [f"flows, {part['side']} px{when}", *(f"\N{GREEK SMALL LETTER SIGMA} {one}" for one in levels), "mean"]
    )
    for row in part["rows"]:
        middle, deviation = spread(row["by_scene"])
        figures = [f"{1000 * row['mse'][level]:.0f}" for level in levels]
        lines.append(line([row["method"], *figures, f"{1000 * middle:.0f} ± {1000 * deviation:.0f}"]))
    return "\n".join(lines)


def pictures_table(part: dict[str, Any], scenes: int) -> str:
    """A row for each method, below those of the references."""
    title = f"{part['setting']}, {scenes} scenes, {part['steps']} steps"
    lines = table_head([title, "PSNR dB", "PSNR made small", *KEPT])
    for row in (*part["references"], *part["rows"]):
        name = f"({row['method']})" if row in part["references"] else row["method"]
        quality = [decibels(row["psnr"]), decibels(row["psnr_small"])]
        lines.append(line([name, *quality, *(MEASURES[measure](row[measure]) for measure in KEPT)]))
    return "\n".join(lines)


def decibels(values: list[float]) -> str:
    """Mean and deviation; nothing where the pictures are the same."""
    middle, deviation = spread(values)
    return "" if middle > 90 else f"{middle:.1f} ± {deviation:.1f}"
