"""Pictures and models for CLEARInspect to speak of, and its quoted lines read back."""

from __future__ import annotations

from typing import Any

from clear_core import ClearSpec
from clear_core.call_memory import MemoryPlan
from clear_core.families import FLUX1, ModelShape
from clear_core.inspection.facts import Inspection, ModelFacts
from clear_core.inspection.report import MARK
from clear_core.settings import ClearSettings

FLUX = ModelFacts(ModelShape.usual(FLUX1), MemoryPlan(weights=23_800_000_000), "bfloat16")
WINDOWS = ClearSpec(16)
VERSIONS = {"clear-flux": "0.1.0", "torch": "2.11.0"}


def facts(side: int = 4096, spec: ClearSpec | None = WINDOWS, **others: Any) -> Inspection:
    """A square picture; ``spec`` None is a model without CLEAR."""
    settings = ClearSettings(spec, dense_blocks=others.pop("dense_blocks", "")) if spec else None
    return Inspection((side, side), "picture", FLUX, settings, versions=VERSIONS, device="cpu", **others)


def quoted(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.split(f"{MARK}\n")[1].splitlines())
