"""``python -m clear_core.distill``: samples, training and evaluation from a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .commands.evaluate import run_evaluate
from .commands.samples import run_generate, run_images
from .commands.train import run_train

DTYPES = ("float32", "bfloat16")


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    options = parse(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clear_core.distill",
        description="Trains windows for any FLUX.1 model: first samples (images or generate), then train. Needs "
        "diffusers and accelerate; several GPUs, ZeRO-2 or FSDP through `accelerate launch -m "
        "clear_core.distill train ...`.",
    )
    commands = parser.add_subparsers(required=True, metavar="images | generate | train | evaluate")

    images = commands.add_parser("images", help="samples from a folder of pictures with .txt captions")
    images.add_argument("folder", type=Path)
    images.add_argument("--pixels", type=int, default=1024, help="square root of the area (default: 1024)")
    images.set_defaults(run=run_images)
    generate = commands.add_parser("generate", help="samples made by the model itself, as in the paper")
    generate.add_argument("captions", type=Path, help="text file, one caption per line")
    generate.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    generate.add_argument("--steps", type=int, default=20)
    generate.add_argument("--guidance", type=float, default=3.5)
    generate.add_argument("--seed", type=int, default=0)
    generate.set_defaults(run=run_generate)
    for command in (images, generate):
        command.add_argument("--out", type=Path, required=True, help="folder for the samples; resumes after a stop")

    train = commands.add_parser("train", help="samples to weights; resumes after a stop")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    train.add_argument("--radius", type=int, required=True, help="window radius in tokens of 16 px")
    train.add_argument("--down-factor", type=int, default=1, help="side of pooled cells (default: 1, no pooling)")
    train.add_argument("--steps", type=int, default=10_000)
    train.add_argument("--batch", type=int, default=1, help="samples per process and pass")
    train.add_argument("--accumulation", type=int, default=1, help="passes per step")
    train.add_argument("--optimizer", default="adamw", help="adamw, or prodigy as in the paper")
    train.add_argument("--rate", type=float, help="learning rate (default: 1e-4 for adamw, 1 for prodigy)")
    train.add_argument("--warm-up", type=int, default=0, help="steps of rising rate")
    train.add_argument("--guidance", type=float, default=3.5)
    train.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--backend", default="auto", help="backend of the windowed attention (default: auto)")
    train.add_argument("--checkpointing", action="store_true", help="recompute activations, for memory")
    train.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    train.add_argument("--cpu", action="store_true", help="do not use a GPU")
    train.set_defaults(run=run_train)
    evaluate = commands.add_parser("evaluate", help="distance of windows from the dense model on held-out samples")
    evaluate.add_argument("--weights", type=Path, help="CLEAR file; without it, windows on the model as it is")
    evaluate.add_argument("--radius", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--down-factor", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--guidance", type=float, default=3.5)
    evaluate.set_defaults(run=run_evaluate)
    for command in (train, evaluate):
        command.add_argument("--data", type=Path, required=True, help="folder of samples")
        command.add_argument("--held-out", type=int, default=16, help="number of last samples held out of the training")
    for command in (images, generate, train, evaluate):
        command.add_argument("--model", required=True, help="folder or Hub name of a diffusers FLUX.1 model")
        command.add_argument("--download", action="store_true", help="download the model if it is not here yet")
        command.add_argument(
            "--dtype", choices=DTYPES, default="bfloat16", help="dtype of the frozen weights, and of autocast"
        )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
