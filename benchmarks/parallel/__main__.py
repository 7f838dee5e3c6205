"""Attention on several devices: time of strips and of heads dealt out, of their transfers, and how much is hidden.

    python -m torch.distributed.run --nproc-per-node=2 -m benchmarks.parallel --output benchmarks/records/NAME.json
    python -m benchmarks.parallel --threads 2

The first starts a process for each device, the second a thread. Results and bytes are checked before anything is timed.
Without a card for each rank it runs on the processor, at small sizes: it shows that the command works, and says nothing
about cards.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clear_core import ClearSpec, SequenceLayout
from clear_core.layout import TOKEN_PIXELS
from clear_core.parallel import Peers, ProcessPeers, ThreadPeers, run_together
from clear_core.parallel.group import join_group

from ..timing import first_line, write_record
from .cases import Case, WrongResultError, measure
from .estimate import HEADS, TEXT, Way
from .links import measure_links

START = "python -m torch.distributed.run --nproc-per-node=2 -m benchmarks.parallel"
WAYS: tuple[Way, ...] = ("strips", "heads")


def main(arguments: list[str] | None = None) -> int:
    """One process's part; returns the exit status."""
    options = parse(arguments)
    started_as_process = "RANK" in os.environ
    if started_as_process == bool(options.threads):
        print(f"start several processes, {START}, or one with --threads 2.", file=sys.stderr)
        return 2
    try:
        return processes(options) if started_as_process else threads(options)
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return 1


def processes(options: argparse.Namespace) -> int:
    """This process is one rank."""
    device = join_group()
    try:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        devices = [torch.device("cuda", one) if device.type == "cuda" else device for one in range(here)]
        options = filled(options, device, dist.get_world_size())
        one_rank(ProcessPeers(), device, options, dist.get_backend(), devices)
        dist.barrier()
        return 0
    finally:
        dist.destroy_process_group()


def threads(options: argparse.Namespace) -> int:
    """Each rank is a thread of this process."""
    ranks = options.threads
    cards = torch.cuda.device_count()
    devices = [torch.device("cuda", one) if cards >= ranks else torch.device("cpu") for one in range(ranks)]
    options = filled(options, devices[0], ranks)

    def one(peers: ThreadPeers) -> None:
        device = devices[peers.rank]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        one_rank(peers, device, options, "threads", devices)

    run_together(ThreadPeers.make(ranks), one)
    return 0


def one_rank(
    peers: Peers, device: torch.device, options: argparse.Namespace, how: str, devices: list[torch.device]
) -> None:
    """All measurements, called by all ranks; rank 0 prints and records each as it comes."""
    show = print if peers.rank == 0 else _nothing
    with torch.inference_mode():
        results = [measure_links(peers, device, how, devices, options.rounds)]
        show_link(results[0], show)
        for side in options.px:
            for radius in options.radius:
                grid = (side // TOKEN_PIXELS,) * 2
                layout, spec = SequenceLayout(options.text, grid), ClearSpec(radius, options.down_factor)
                dtype = getattr(torch, options.dtype)
                case = Case(layout, spec, options.heads, options.head_dim, dtype, options.backend)
                results.append(measure(peers, device, case, options.ways, options.rounds))
                show_case(results[-1], show)
                if peers.rank == 0 and options.output:
                    record(options, device, results)


def _nothing(text: str) -> None:
    """What ranks other than 0 print."""


def show_link(link: dict[str, Any], show: Callable[[str], None]) -> None:
    if not link["cards"]:
        show("There is no card for each rank: this runs on the processor, and says nothing about cards.")
    access = {True: ", with peer access", False: ", without peer access", None: ""}[link["peer_access"]]
    show(f"{link['how']}{access}: {link['gb_per_s']:.2f} GB/s, {link['latency_us']:.0f} us for one byte")


def show_case(result: dict[str, Any], show: Callable[[str], None]) -> None:
    pooled = f", pooled {result['down_factor']} x {result['down_factor']}" if result["down_factor"] > 1 else ""
    show(
        f"\n{result['px'][1]} x {result['px'][0]} px, radius {result['radius']}{pooled}, {result['ranks']} ranks; "
        f"one device {result['one_device_ms']:.2f} ms"
    )
    show(f"{'':>8} {'ms':>10} {'speed-up':>9} {'computing':>10} {'transfers':>10} {'hidden':>7} {'MB sent':>9}")
    for way, one in result["ways"].items():
        if "skipped" in one:
            show(f"{way:>8} skipped: {one['skipped']}")
            continue
        show(
            f"{way:>8} {one['ms']:>10.2f} {one['speed_up']:>8.2f}x {one['computing_ms']:>10.2f} "
            f"{one['transfer_ms']:>10.2f} {one['hidden']:>7.0%} {one['bytes_sent'] / 1e6:>9.2f}"
        )


def record(options: argparse.Namespace, device: torch.device, results: list[dict[str, Any]]) -> None:
    """Writes the file that was asked for."""
    shown = {name: value for name, value in vars(options).items() if name not in ("output", "threads")}
    write_record(options.output, device, shown, results)


def filled(options: argparse.Namespace, device: torch.device, ranks: int) -> argparse.Namespace:
    """The options with what suits the device where nothing was given; a rank on the processor gets its share of it."""
    card = device.type == "cuda"
    usual: dict[str, Any] = {
        "px": [2048, 4096, 8192] if card else [512],
        "radius": [8, 16, 32] if card else [8],
        "heads": HEADS if card else 4,
        "head_dim": 128 if card else 64,
        "text": TEXT if card else 64,
        "dtype": "bfloat16" if card else "float32",
    }
    given = {name: value for name, value in vars(options).items() if value is not None}
    if not card:
        torch.set_num_threads(options.cores or max(1, (os.cpu_count() or 1) // ranks))
    return argparse.Namespace(**{**vars(options), **usual, **given})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=first_line(__doc__))
    parser.add_argument("--threads", type=int, help="ranks that are threads of this process, 2 or more")
    parser.add_argument("--px", type=_numbers(TOKEN_PIXELS), help="side of a square picture in pixels, or several")
    parser.add_argument("--radius", type=_numbers(1), help="in tokens, or several")
    parser.add_argument("--down-factor", type=int, default=1, help="1 is without pooled keys")
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help="some of strips,heads")
    parser.add_argument("--text", type=int, help="text tokens; FLUX has 512")
    parser.add_argument("--heads", type=int, help="FLUX has 24")
    parser.add_argument("--head-dim", type=int, help="FLUX has 128")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--backend", default="auto", help="for the windows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, help="of the processor for each rank, if the ranks run on it")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 2:
        parser.error(f"--threads is {options.threads}; expected 2 or more.")
    if int(os.environ.get("WORLD_SIZE", "2")) < 2:
        parser.error("there is one process; expected 2 or more, by --nproc-per-node=2.")
    return options


def _numbers(multiple: int) -> Callable[[str], list[int]]:
    return partial(_multiples, multiple=multiple)


def _multiples(text: str, multiple: int) -> list[int]:
    numbers = [int(one) for one in text.split(",")]
    if any(one < 1 or one % multiple for one in numbers):
        raise argparse.ArgumentTypeError(f"{text} was given; expected multiples of {multiple}, 1 or more of them")
    return numbers


def _ways(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(WAYS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} was given; expected some of {', '.join(WAYS)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
