"""The arguments of ``train`` and ``evaluate``. A setting that is not named is the preset's, or that of the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..config import BASES, PRESETS, RATES, SCHEDULES
from ..outputs import FORMS
from .evaluate import run_evaluate
from .train import run_train

FILE_DTYPES = ("bfloat16", "float16", "float32")

Commands = Any
"""The subparsers of argparse, whose class has no public name."""


def add_train(commands: Commands) -> None:
    """The arguments of ``train``."""
    train: argparse.ArgumentParser = commands.add_parser("train", help="samples to weights; resumes after a stop")
    train.add_argument("--out", type=Path, help="folder for checkpoints, log and weights")
    train.add_argument("--radius", type=int, required=True, help="window radius in tokens")
    train.add_argument("--down-factor", type=int, help="side of pooled cells (default: 1, no pooling)")
    train.add_argument("--preset", choices=PRESETS, help="settings by name; what is named besides replaces them")
    train.add_argument("--steps", type=int, help="optimizer steps (default: 10000)")
    train.add_argument("--batch", type=int, help="samples per process and pass (default: 1)")
    train.add_argument("--accumulation", type=int, help="passes per step (default: 1)")
    train.add_argument(
        "--rank", type=int, help="train additions of this rank, at most the model's width (default: whole weights)"
    )
    train.add_argument("--base", choices=BASES, help="precision of the frozen weights (default: plain, as --dtype)")
    train.add_argument(
        "--form", choices=FORMS, action="append", help="form of the weights, also several times (default: merged)"
    )
    train.add_argument("--file-dtype", choices=FILE_DTYPES, default="bfloat16", help="of the weights that are written")
    train.add_argument("--optimizer", choices=RATES, help="default: adamw")
    train.add_argument("--rate", type=float, help="learning rate (default: 1e-4, and 1 for prodigy)")
    train.add_argument("--schedule", choices=SCHEDULES, help="of the rate after the warm-up (default: constant)")
    train.add_argument("--warm-up", type=int, help="steps of rising rate (default: 0)")
    train.add_argument("--guidance", type=float, help="default: the family's usual scale")
    train.add_argument("--clip", type=float, help="largest gradient norm (default: 1)")
    train.add_argument("--seed", type=int, help="of order and noise (default: 0)")
    train.add_argument("--backend", default="auto", help="backend of the windowed attention (default: auto)")
    train.add_argument("--checkpointing", action="store_true", help="recompute activations, for memory")
    train.add_argument(
        "--offload", action="store_true", help="keep the blocks' frozen weights on the CPU; recomputes activations"
    )
    train.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: 500)")
    train.add_argument(
        "--pictures-every", type=int, default=0, help="steps between validation pictures (default: none)"
    )
    train.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    train.add_argument("--cpu", action="store_true", help="do not use a GPU")
    train.add_argument("--estimate", action="store_true", help="print the memory that this takes, and do nothing else")
    train.add_argument(
        "--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"), help="pictures of --estimate"
    )
    train.add_argument("--text-tokens", type=int, help="of --estimate (default: the family's)")
    _add_data(train, required=False)
    train.set_defaults(run=run_train)


def add_evaluate(commands: Commands) -> None:
    """The arguments of ``evaluate``."""
    evaluate: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="distance of windows from the dense model on held-out samples"
    )
    evaluate.add_argument("--weights", type=Path, help="CLEAR file; without it, windows on the model as it is")
    evaluate.add_argument("--radius", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--down-factor", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--guidance", type=float, help="default: the family's usual scale")
    _add_data(evaluate, required=True)
    evaluate.set_defaults(run=run_evaluate)


def _add_data(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument("--data", type=Path, required=required, help="folder of samples")
    command.add_argument("--held-out", type=int, default=16, help="last samples held out of the training (default: 16)")
