"""``python -m clear_core.distill``: samples, training and evaluation from a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .commands.arguments import add_evaluate, add_train
from .commands.samples import run_generate, run_images

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
        description="Trains windows for FLUX.1, Chroma, FLUX.2, Qwen-Image and SD3.5: first samples (images or "
        "generate), then train. Needs "
        "diffusers and accelerate; several GPUs, ZeRO-2 or FSDP through `accelerate launch -m "
        "clear_core.distill train ...`.",
    )
    commands = parser.add_subparsers(required=True, metavar="images | generate | train | evaluate")

    images = commands.add_parser("images", help="samples from a folder of pictures with .txt or .json captions")
    images.add_argument("folder", type=Path)
    images.add_argument("--pixels", type=int, default=1024, help="square root of the area (default: 1024)")
    images.add_argument("--skip-damaged", action="store_true", help="go on without pictures that cannot be used")
    images.set_defaults(run=run_images)
    generate = commands.add_parser("generate", help="samples made by the model itself, as in the paper")
    generate.add_argument("captions", type=Path, help="text file, one caption per line; UTF-8 or UTF-16")
    generate.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    generate.add_argument("--steps", type=int, default=20)
    generate.add_argument("--guidance", type=float, help="default: the family's usual scale")
    generate.add_argument("--seed", type=int, default=0)
    generate.set_defaults(run=run_generate)
    for command in (images, generate):
        command.add_argument("--out", type=Path, required=True, help="folder for the samples; resumes after a stop")

    add_train(commands)
    add_evaluate(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--model", required=True, help="folder or Hub name of a diffusers model; for train and evaluate also a file"
        )
        command.add_argument("--download", action="store_true", help="download the model if it is not here yet")
        command.add_argument(
            "--dtype", choices=DTYPES, default="bfloat16", help="dtype of the frozen weights, and of autocast"
        )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
