"""The record of the quality experiments: every window at every size, on the own weights and on distilled ones."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import torch

from .measure import judge, set_bench
from .subject import COMMITTED, Subject
from .windows import SPECS, window_file


def judged(side: int, scenes: int, pictures: int, subject: Subject = COMMITTED) -> Iterator[dict[str, Any]]:
    """A row for each window before and after distillation, at one size.

    Args:
        side: Of the pictures in px.
        scenes, pictures: Numbers of held-out scenes for the errors, and of pictures redone from half the size.
        subject: The model and its windows; a window without a file has no second row.
    """
    bench = set_bench(subject.dense(), scenes, pictures, (side, side))
    for spec in SPECS:
        for distilled in (False, True):
            if distilled and not window_file(spec, subject.weights).exists():
                continue
            quality = judge(bench, subject.windowed(spec, distilled))
            yield {
                "side": side,
                "radius": spec.radius,
                "down_factor": spec.down_factor,
                "distilled": distilled,
                "velocity_mse": {str(level): error for level, error in quality.velocity_mse.items()},
                "mean_mse": quality.mean_mse,
                "psnr": quality.psnr,
                "ssim": quality.ssim,
                "layout": quality.layout,
            }


def make_record(rows: list[dict[str, Any]], scenes: int, pictures: int, subject: Subject = COMMITTED) -> dict[str, Any]:
    """The rows with what they were measured on."""
    return {
        "model": subject.identity["model"],
        "scenes": scenes,
        "pictures": pictures,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
