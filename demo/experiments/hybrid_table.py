"""The hybrid record as Markdown: a table of flows for each size, and one of pictures for each setting."""

from __future__ import annotations

from typing import Any

from .guidance_table import line, table_head
from .hybrid_record import spread


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    return "\n\n".join(
        [flows_table(part) for part in record["flows"]] + [pictures_table(part) for part in record["settings"]]
    )


def flows_table(part: dict[str, Any]) -> str:
    """A row for each plan."""
    levels = list(part["rows"][0]["mse"])
    title = f"flows, {part['side']} px, {part['scenes']} scenes"
    lines = table_head([title, "pairs", *(f"\N{GREEK SMALL LETTER SIGMA} {level}" for level in levels), "mean"])
    for row in part["rows"]:
        middle, deviation = spread(row["by_scene"])
        lines.append(
            line(
                [
                    row["plan"],
                    percent(row["share"]),
                    *(f"{1000 * row['mse'][level]:.2f}" for level in levels),
                    f"{1000 * middle:.2f} ± {1000 * deviation:.2f}",
                ]
            )
        )
    return "\n".join(lines)


def pictures_table(part: dict[str, Any]) -> str:
    """A row for each plan, dense attention first."""
    title = f"{part['setting']}, {part['scenes']} scenes, {part['steps']} steps"
    lines = table_head([title, "radius / side", "pairs", "PSNR dB", "layout", "latent MSE", "found", "surplus"])
    for row in part["rows"]:
        compared = ["", "", ""]
        if "psnr" in row:
            compared = [
                "{:.1f} ± {:.1f}".format(*spread(row["psnr"])),
                f"{row['layout']:.3f}",
                f"{1000 * spread(row['latent_mse'])[0]:.1f}",
            ]
        cells = [row["plan"], row["radius"], percent(row["share"]), *compared]
        lines.append(line([*cells, f"{100 * row['found']:.0f} %", f"{row['surplus']:.1f}"]))
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
