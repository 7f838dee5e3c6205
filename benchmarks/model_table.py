"""What each model gets, in Markdown: distilled windows, training-free windows, enlarging."""

from __future__ import annotations

from clear_core.families import FAMILIES, IN_DIFFUSERS, Family


def rows() -> list[str]:
    """A row for each family that can have windows, and one for all other models."""
    lines = [
        "| models | windows (CLEAR Attention) | enlarging (CLEAR Upscale) | in diffusers |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {family.name} | {windows(family)} | yes | {in_diffusers(family)} |" for family in FAMILIES]
    return [*lines, "| SD 1.5, SDXL, and any other model that makes single pictures | none | yes | no |"]


def windows(family: Family) -> str:
    """How good the windows are."""
    return "training-free" if family.weights is None else "**distilled**, also training-free"


def in_diffusers(family: Family) -> str:
    return "windows" if family in IN_DIFFUSERS else "no"
