"""``python -m clear_core.weights``, or this file by its path: list, get, inspect, save, delta."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if not __package__:  # Run by its path, as an isolated Python (Windows portable) has to: nothing else finds the package.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = "clear_core.weights"

from ..progress import bar
from .catalogue import CATALOGUE, LICENCE, REPOSITORY, find_release, hub_address
from .download import fetch, silence_client
from .errors import ClearFileError, FetchError, first_few, printable
from .trained_set import FIRST, TRAINED_SETS

if TYPE_CHECKING:
    from .writer import OnTensor

STORED_AS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextmanager
def tensor_bar(label: str) -> Generator[OnTensor]:
    """A progress bar as an ``on_tensor`` callback."""
    with bar(desc=label, unit="tensor") as tensors:

        def on_tensor(count: int, total: int) -> None:
            tensors.total = total
            tensors.update(count - tensors.n)

        yield on_tensor


def list_releases(args: argparse.Namespace) -> None:
    for release in CATALOGUE.values():
        pooled = f", pooled {release.down_factor} x {release.down_factor}" if release.down_factor > 1 else ""
        print(f"{release.stem:<24} {release.size / 1e9:.2f} GB  radius {release.radius}{pooled}")
        print(f"    {release.meant_for}")
    print(f"From {hub_address()}/{REPOSITORY}. {LICENCE}")


def get(args: argparse.Namespace) -> None:
    release = find_release(args.name)
    print(LICENCE)
    silence_client()
    with bar(desc=release.stem, unit="megabyte") as megabytes:

        def on_block(count: int, total: int) -> None:
            megabytes.total = total // 10**6
            megabytes.update(count // 10**6 - megabytes.n)

        path = fetch(release.stem, args.to, on_block)
    print(path)


def inspect(args: argparse.Namespace) -> None:
    from .reader import read_clear_file

    file = read_clear_file(args.file)
    facts = {
        "family": file.family,
        "kind": file.kind if file.rank is None else f"{file.kind}, rank {file.rank}",
        "radius": file.radius or "not stated: set the radius by hand",
        "down factor": file.down_factor,
        "fits": f"width {file.width}, {file.num_double} double and {file.num_single} single blocks",
        "dtypes": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in file.dtypes)),
        "names": file.naming,
        "size": f"{file.size / 1e6:,.1f} MB",
        "source": file.source or "not stated",
    }
    print("\n".join(f"{label:<12} {value}" for label, value in {"file": file.name, **facts}.items()))
    if args.finite:
        file.check_finite()
        print(f"{'finite':<12} every value")


def save(args: argparse.Namespace) -> None:
    from .header import ClearHeader
    from .state import trained_state
    from .writer import save_clear_file

    state = trained_state(args.state, args.family)
    if state.others:
        print(f"left out, not CLEAR's: {len(state.others)} tensors ({first_few(state.others, len(state.others))})")
    with tensor_bar("saving") as on_tensor:
        file = save_clear_file(
            args.out,
            state.tensors,
            state.spatial_weights,
            ClearHeader(
                args.radius,
                state.down_factor,
                source=args.source or printable(Path(args.state).name),
                family=args.family,
            ),
            force=args.force,
            dtype=STORED_AS.get(args.dtype),
            on_tensor=on_tensor,
        )
    print(f"{file.path}: radius {file.radius}, down factor {file.down_factor}, {file.size / 1e6:,.1f} MB")


def delta(args: argparse.Namespace) -> None:
    from .delta import save_delta
    from .lora import save_lora

    if args.lora is None:
        with tensor_bar("subtracting") as on_tensor:
            file = save_delta(args.base, args.clear, args.out, force=args.force, on_tensor=on_tensor)
        print(f"{file.path}: {file.size / 1e6:,.1f} MB")
        return
    with tensor_bar("decomposing") as on_tensor:
        energy = save_lora(args.base, args.clear, args.out, args.lora, force=args.force, on_tensor=on_tensor)
    for rank, kept in energy.kept.items():
        print(f"rank {rank:>5} keeps {100 * kept:.2f} % of the delta's energy")
    print(f"{args.out}: rank {args.lora}; the biases ({100 * energy.biases:.4f} % of all) have no place in a LoRA")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clear_core.weights", description="The distilled CLEAR weights.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the released files")
    command.set_defaults(run=list_releases)

    command = commands.add_parser("get", help="fetch a released file from Hugging Face")
    command.add_argument("name", help="e.g. clear_local_16")
    command.add_argument(
        "--to",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="folder to put it in, for ComfyUI its models/clear (default: this one)",
    )
    command.set_defaults(run=get)

    command = commands.add_parser("inspect", help="show the contents of a file")
    command.add_argument("file", type=Path)
    command.add_argument("--finite", action="store_true", help="also check every element (one pass over the file)")
    command.set_defaults(run=inspect)

    command = commands.add_parser("save", help="turn a trained state into a file in the published format")
    command.add_argument(
        "--state", type=Path, required=True, help="safetensors file with the trained tensors, or a whole trained model"
    )
    command.add_argument("--radius", type=int, required=True, help="window radius of the training, in tokens")
    command.add_argument("--family", choices=TRAINED_SETS, default=FIRST, help=f"what was trained (default: {FIRST})")
    command.add_argument(
        "--source", default="", help="origin of the weights, one line (default: the state's file name)"
    )
    command.add_argument("--dtype", choices=STORED_AS, help="dtype in the file (default: as in the state)")
    add_out(command)
    command.set_defaults(run=save)

    command = commands.add_parser("delta", help="write CLEAR minus its base, to be added to any fine-tune")
    command.add_argument(
        "--base",
        type=Path,
        nargs="+",
        required=True,
        help="the model that it was trained from: flux1-dev.safetensors, or the shards of the diffusers transformer",
    )
    command.add_argument("--clear", type=Path, required=True, help="the CLEAR file")
    command.add_argument("--lora", type=int, metavar="RANK", help="write a LoRA of this rank instead (local variants)")
    add_out(command)
    command.set_defaults(run=delta)
    return parser


def add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="file to write")
    command.add_argument("--force", action="store_true", help="replace the file if it exists")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ClearFileError, FetchError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
