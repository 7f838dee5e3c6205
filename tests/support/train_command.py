"""The train command in this process, on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

from clear_core.distill import __main__ as command


def train_in(out: Path, data: Path, model: Path, *more: str) -> int:
    """Runs it; returns its exit status."""
    arguments = ["train", "--model", str(model), "--data", str(data), "--out", str(out), "--radius", "2"]
    arguments += ["--cpu", "--dtype", "float32", "--held-out", "2", "--rate", "1e-3", *more]
    return command.main(arguments)
