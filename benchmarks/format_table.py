"""What distilled weights become on each format of a model, in Markdown, from the committed record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "formats_comfyui_0_33.json"
KINDS = ("whole", "delta", "low rank")
UNCHANGED = 1e-4
"""Errors below are printed as 0."""


def rows() -> list[str]:
    """A row for each format that the record's ComfyUI has."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    found = [row for row in record["results"] if "own" in row]
    lines = [
        "| the model's format | model alone | merged first | whole / delta / low rank | partly loaded | "
        "with a LoRA | saved and loaded |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in found:
        cells = [
            row["format"],
            share(row["own"]),
            share(row["merged"]),
            " / ".join(share(row["patched"][kind]) for kind in KINDS),
            "the same bits" if all(row["partial_is_whole"].values()) else parts(row["partial"]),
            share(row["lora"]),
            {True: "the same weights", False: "other weights", None: "ComfyUI cannot save it"}[row["saved"]],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    options = record["options"]
    lines += [
        "",
        f"ComfyUI {options['comfyui']}, comfy-kitchen {options['comfy-kitchen']}, torch {record['torch']}, CPU.",
    ]
    return lines


def parts(errors: dict[str, float]) -> str:
    """The three errors of a model that is loaded in parts."""
    return " / ".join(share(errors[kind]) for kind in KINDS)


def share(error: float) -> str:
    """A relative error in percent."""
    return "0" if error < UNCHANGED else f"{100 * error:.1f} %"
