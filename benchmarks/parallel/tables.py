"""The tables of ``docs/parallel.md``. ``python -m benchmarks.parallel.tables --radius 8`` prints them for a radius."""

from __future__ import annotations

import argparse

from clear_core import ClearSpec
from clear_core.layout import TOKEN_PIXELS
from clear_core.memory import GIB
from clear_core.parallel import heads_traffic, split_rows, strip_traffic

from ..timing import first_line
from .estimate import FLUX, HEADS, LINKS, Base, Link, Way, layout_of, speed_up, tensor_parallel_traffic
from .memory import heads_bytes, strips_bytes, tensor_parallel_bytes

SIDES = (1024, 2048, 4096, 8192)
GPUS = (2, 4, 8, 16)
RADII = (8, 16, 32)
USUAL = 16
"""The radius that most people use."""

SLOWER = 4
"""Of the second table of times: cards without NVLink compute slower than an H100."""


def tables(radius: int = USUAL) -> dict[str, list[str]]:
    """All of them by name, a Markdown line each."""
    base = Base.measured()
    return {
        "bytes": bytes_rows(),
        "times": speed_rows(base, LINKS, radius, 1),
        "times of slower cards": speed_rows(base, LINKS[1:], radius, SLOWER),
        "memory": memory_rows(radius),
    }


def bytes_rows() -> list[str]:
    """10**6 bytes that the busiest card sends in one layer."""
    radii = " / ".join(map(str, RADII))
    rows = table_head(
        "picture",
        "GPUs",
        "rows of a strip",
        f"strips: border, radius {radii}",
        "strips: text",
        "strips: pooled 4 x 4",
        "heads",
        "tensor parallel",
        f"least is sent by, radius {radii}",
    )
    for side in SIDES:
        for ranks in GPUS:
            heads = heads_megabytes(side, ranks)
            busiest = [strips_megabytes(side, ranks, ClearSpec(radius)) for radius in RADII]
            pooled = strips_megabytes(side, ranks, ClearSpec(USUAL, 4))[2]
            text = busiest[0][1]
            least = ["strips" if heads is None or border + text < heads else "heads" for border, text, _ in busiest]
            height = side // TOKEN_PIXELS
            cells = [
                f"{side} x {side}",
                str(ranks),
                str(max(map(len, split_rows(height, ranks)))),
                " / ".join(number(border) for border, _, _ in busiest),
                number(text),
                number(pooled),
                "-" if heads is None else number(heads),
                "-" if heads is None else number(tensor_parallel_traffic(layout_of(side), ranks) / 1e6),
                least[0] if len(set(least)) == 1 else " / ".join(least),
            ]
            rows.append(table_row(cells))
    return rows


def strips_megabytes(side: int, ranks: int, spec: ClearSpec) -> tuple[float, float, float]:
    """Border, text with its log-sum-exps, and pooled keys of the rank that sends most."""
    border, text, lse, pooled = max(strip_traffic(layout_of(side), spec, ranks, **FLUX), key=sum)
    return border / 1e6, (text + lse) / 1e6, pooled / 1e6


def heads_megabytes(side: int, ranks: int) -> float | None:
    """Of each rank; None if the heads cannot be dealt out."""
    if HEADS % ranks:
        return None
    return heads_traffic(layout_of(side).length, ranks, **FLUX) / ranks / 1e6


def speed_rows(base: Base, links: tuple[Link, ...], radius: int, slower: float) -> list[str]:
    """How many times as fast as one device a step is, strips and heads; see :mod:`.estimate`."""
    rows = table_head("picture", "GPUs", *(link.name for link in links))
    ways: tuple[Way, ...] = ("strips", "heads")
    for side in SIDES:
        for ranks in GPUS:
            cells: list[str] = []
            for link in links:
                found = [speed_up(side, radius, ranks, link, way, base, slower=slower) for way in ways]
                cells.append(" / ".join("-" if one is None else f"{one:.1f}" for one in found))
            rows.append(table_row([f"{side} x {side}", str(ranks), *cells]))
    return rows


def memory_rows(radius: int) -> list[str]:
    """GiB of the card that takes most, bf16 weights and the runtime's share included."""
    rows = table_head(
        "picture", "GPUs", "ComfyUI: strips", "diffusers: strips", "diffusers: heads", "diffusers: tensor parallel"
    )
    for side in SIDES:
        for ranks in (1, *GPUS):
            counted = (
                strips_bytes(side, ranks, radius, True),
                strips_bytes(side, ranks, radius, False),
                heads_bytes(side, ranks),
                tensor_parallel_bytes(side, ranks),
            )
            cells = ["-" if one is None else f"{one / GIB:.1f}" for one in counted]
            rows.append(table_row([f"{side} x {side}", str(ranks), *cells]))
    return rows


def number(megabytes: float) -> str:
    """Two digits where they tell something."""
    return f"{megabytes:.1f}" if megabytes < 9.95 else f"{megabytes:.0f}"


def table_head(*names: str) -> list[str]:
    return [table_row(list(names)), table_row(["---"] * len(names))]


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel.tables", description=first_line(__doc__))
    parser.add_argument("--radius", type=int, choices=RADII, default=USUAL, help="of times and memory, in tokens")
    for name, rows in tables(parser.parse_args().radius).items():
        print("\n".join([f"{name}:", *rows, ""]))


if __name__ == "__main__":
    main()
