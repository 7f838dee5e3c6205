"""The settings of a training from its command line."""

from __future__ import annotations

import argparse
import dataclasses

from ..config import PRESETS, TrainConfig


def config_of(options: argparse.Namespace, processes: int) -> TrainConfig:
    """The settings of the command line: a preset's, and over them what was named.

    Raises:
        ValueError: A value is out of range, or the preset's samples do not divide among the processes.
    """
    named = {
        field.name: value
        for field in dataclasses.fields(TrainConfig)
        if (value := getattr(options, field.name, None)) is not None
    }
    preset = dict(PRESETS[options.preset]) if options.preset else {}
    per_step = preset.pop("samples_per_step", None)
    if per_step is not None and "accumulation" not in named:
        share = named.get("batch", 1) * processes
        if per_step % share:
            raise ValueError(
                f"preset {options.preset} has {per_step} samples a step, which {processes} processes of batch "
                f"{named.get('batch', 1)} do not divide; set batch, or set accumulation yourself."
            )
        preset["accumulation"] = per_step // share
    return TrainConfig(**preset | named)
