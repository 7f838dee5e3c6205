"""The record of the three transfers."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..kept import begin
from ..subject import COMMITTED, Subject
from .control_run import control_rows
from .enlarged import enlarged_rows
from .plans import CONDITIONS, PARTS, TEXTS, Extent
from .strips import strip_rows


def total(extent: Extent, parts: Sequence[str] = PARTS) -> int:
    """Number of rows of a record."""
    rows = {
        "enlarged": len(extent.factors) * len(extent.strengths) * len(extent.ways),
        "control": len(CONDITIONS) * (1 + len(extent.ways_under_control)),
        "strips": 1 + len(TEXTS) * len(extent.strips),
    }
    return sum(rows[part] for part in parts)


def make_record(
    folder: Path,
    extent: Extent,
    subject: Subject = COMMITTED,
    on_row: Callable[[], None] = lambda: None,
    on_step: Callable[[], None] = lambda: None,
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Makes the pictures that the folder lacks, and judges all.

    Args:
        folder: Keeps ControlNets and latents, and takes one subject and one extent.
        extent: What is run.
        subject: The model and its windows.
        on_row: Called after each row.
        on_step: Called after each step of a ControlNet's training.
        parts: Which of ``PARTS``; the record has no others.
    """
    identity = asdict(extent) | subject.identity
    begin(folder, identity)

    def told(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for row in rows:
            found.append(row)
            on_row()
        return found

    rows = {
        "enlarged": lambda: enlarged_rows(folder / "enlarged", extent, subject),
        "control": lambda: control_rows(folder / "control", extent, subject, on_step),
        "strips": lambda: strip_rows(folder / "strips", extent, subject),
    }
    return {
        "model": identity["model"],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "machine": platform.machine(),
        "scenes": extent.scenes,
        "steps": extent.steps,
        "control_side": extent.control_side,
        "control_steps": extent.control_steps,
        "strips_side": extent.strips_side,
        **{part: told(rows[part]()) for part in parts},
    }
