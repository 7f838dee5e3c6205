"""The record of the transfers as Markdown."""

from __future__ import annotations

from typing import Any

from ..guidance_table import line, table_head
from ..measure import mean

MEASURES = ("PSNR dB", "SSIM", "layout", "found", "surplus")


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md, of the parts that the record has."""
    made = enlarged_tables(record) if "enlarged" in record else []
    made += [control_table(record)] if "control" in record else []
    return "\n\n".join([*made, *([strips_table(record)] if "strips" in record else [])])


def enlarged_tables(record: dict[str, Any]) -> list[str]:
    """One for each size and strength."""
    groups = list(dict.fromkeys((row["side"], row["strength"]) for row in record["enlarged"]))
    made: list[str] = []
    for side, strength in groups:
        head = f"{side} px, strength {strength:g}, {record['scenes']} scenes"
        lines = table_head([head, "weights", *MEASURES], left=2)
        lines += [
            line([row["window"], weights(row), *measures(row)])
            for row in record["enlarged"]
            if (row["side"], row["strength"]) == (side, strength)
        ]
        made.append("\n".join(lines))
    return made


def control_table(record: dict[str, Any]) -> str:
    """The ControlNets, with the error of the condition."""
    head = f"ControlNet, {record['control_side']} px from noise, {record['scenes']} scenes"
    lines = table_head([head, "attention", "weights", "condition's error", *MEASURES], left=3)
    for row in record["control"]:
        error = f"{row['condition_error']:.1f}"
        lines.append(line([row["condition"], row["window"], weights(row), error, *measures(row)]))
    return "\n".join(lines)


def strips_table(record: dict[str, Any]) -> str:
    """Strips, compared with the whole picture."""
    head = f"{record['strips_side']} px from noise, {record['scenes']} scenes, distilled"
    lines = table_head([head, "strips", "text", *MEASURES], left=1)
    for row in record["strips"]:
        strips = "whole" if row["strips"] == 1 else str(row["strips"])
        lines.append(line([row["window"], strips, row["text"], *measures(row)]))
    return "\n".join(lines)


def weights(row: dict[str, Any]) -> str:
    """Of a row; none where there is no window."""
    return "" if row["window"].startswith("dense") else row["weights"]


def measures(row: dict[str, Any]) -> list[str]:
    """The cells of ``MEASURES``."""
    compared = ["", "", ""]
    if "psnr" in row:
        ssim = "" if row["ssim"] is None else f"{row['ssim']:.3f}"
        compared = [f"{mean(row['psnr']):.1f}", ssim, f"{row['layout']:.4f}"]
    return [*compared, f"{100 * row['found']:.0f} %", f"{row['surplus']:.1f}"]
