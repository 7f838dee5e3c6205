"""The log of a training: one line of JSON for each step, and for each held-out error."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from .disk import no_half_file

LOG = "log.jsonl"


class TrainingLog:
    """Lines of a folder's log, of one process.

    A run that was killed has written more steps than its last checkpoint has; :meth:`begin` drops them, since they are
    run again.

    Args:
        folder: Of the training.
        writes: Whether this process writes.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.path, self.writes = folder / LOG, writes

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between two lines."""

    def begin(self, step: int) -> None:
        """Drops the lines after a step, and a line that was cut off."""
        if not self.writes or not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with no_half_file(self.path) as part:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line. Somebody may be watching, and a killed process writes nothing more: it is not kept back."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _step_of(line: str) -> float:
    """The step of a line; after all others if it is none."""
    try:
        found: Any = json.loads(line)
        return float(found["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
