"""The record of the quality experiments as Markdown, a table for each size."""

from __future__ import annotations

from typing import Any

from .distil_table import SIGMA, thousandths
from .guidance_table import line, table_head


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    sides = list(dict.fromkeys(row["side"] for row in record["rows"]))
    return "\n\n".join(side_table(record, side) for side in sides)


def side_table(record: dict[str, Any], side: int) -> str:
    """A row for each window before and after distillation."""
    rows = [row for row in record["rows"] if row["side"] == side]
    levels = list(rows[0]["velocity_mse"])
    title = f"{side} px, {record['scenes']} scenes"
    head = [title, "weights", *(f"{SIGMA} {level}" for level in levels), "mean", "PSNR dB", "SSIM", "layout"]
    lines = table_head(head, left=2)
    for row in rows:
        window = f"radius {row['radius']}" + (f", pooled {row['down_factor']}" if row["down_factor"] > 1 else "")
        cells = [window, "distilled" if row["distilled"] else "as they are"]
        cells += [thousandths(row["velocity_mse"][level]) for level in levels] + [thousandths(row["mean_mse"])]
        for name, digits in (("psnr", 1), ("ssim", 3), ("layout", 4)):
            cells.append("" if row[name] is None else f"{row[name]:.{digits}f}")
        lines.append(line(cells))
    return "\n".join(lines)
