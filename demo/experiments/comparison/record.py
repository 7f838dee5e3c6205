"""The record of the trained comparison: every row before and after training, seed by seed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from .plans import STRENGTH, Row
from .run import Folder


def make_record(folder: Folder, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a folder that holds all of them; what is missing is made."""
    extent = folder.extent
    return {
        "model": folder.fingerprint,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "device": "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "side": extent.side,
        "grid": list(extent.layout.grid),
        "window": extent.window,
        "steps": extent.steps,
        "trial_steps": extent.trial_steps,
        "batch": extent.batch,
        "samples": extent.samples,
        "scenes": extent.scenes,
        "pictures": extent.pictures,
        "trial_scenes": extent.compared,
        "strength": STRENGTH,
        "seeds": list(extent.seeds),
        "trial_seed": extent.trial_seed,
        "dense": folder.dense(),
        "rows": [row_record(folder, row) for row in rows],
    }


def row_record(folder: Folder, row: Row) -> dict[str, Any]:
    """One attention: its size, the rates tried, the figures before and after."""
    return {
        "name": row.name,
        "kind": row.kind,
        "distilled": row.distilled,
        "attention": folder.extent.attention(row.kind).name,
        "keys": folder.extent.keys(row.kind),
        "trials": {f"{rate:g}": mean for rate, mean in folder.trials(row).items()},
        "rate": folder.rate(row),
        "before": folder.before(row),
        "after": [folder.after(row, seed) for seed in folder.extent.seeds],
    }
