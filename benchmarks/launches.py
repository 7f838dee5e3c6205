"""Counts what one call of attention asks of devices that are not here: launches, copied bytes, scores kept in memory.

    python -m benchmarks.launches --before baeb0b9 --output benchmarks/records/launches.json

Nothing is computed and nothing is timed. "before" is another revision of this repository, counted by the same code. A
call is the second of its kind, as in a model: what is made once and kept is not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from .counted import Counting, Counts
from .pretended_card import ignore_current_device
from .timing import first_line, write_record

PROJECT = Path(__file__).resolve().parents[1]
GRIDS = {"1K": (64, 64), "2K": (128, 128), "4K": (256, 256), "8K": (512, 512)}
RADII = (8, 16, 32)
DOWN_FACTORS = (1, 4)
TEXT, HEADS, HEAD_DIM = 512, 24, 128
GIB = 2**30


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        fused: Whether its attention keeps no scores in memory.
        free: Free memory in bytes.
    """

    device: torch.device
    fused: bool
    free: int
    backends: tuple[str, ...] = ("gather",)


KINDS = {
    "NVIDIA": Kind(torch.device("cuda", 0), True, 8 * GIB, ("gather", "flex", "triton")),
    "NVIDIA, full of weights": Kind(torch.device("cuda", 0), True, GIB // 2),
    "AMD or old NVIDIA, not fused": Kind(torch.device("cuda", 1), False, 8 * GIB, ("gather", "flex", "triton")),
    "Mac": Kind(torch.device("mps", 0), False, 8 * GIB),
    "Intel": Kind(torch.device("xpu", 0), False, 8 * GIB),
    "CPU": Kind(torch.device("cpu"), True, 8 * GIB, ("gather", "flex")),
}


def count(kind: Kind, backend: str, grid: tuple[int, int], radius: int, down_factor: int) -> dict[str, int]:
    """Launches, attention calls, copied bytes, and bytes of the most scores that are kept at once, in float32."""
    from clear_core import ClearSpec, SequenceLayout, clear_attention

    layout = SequenceLayout(TEXT, grid)
    counting = Counting(kind.device)
    with torch.no_grad(), counting, pretended(kind, counting):
        # As the model has them: token by token, V inside a wider row.
        wide = counting.tensor(1, layout.length, 3, HEADS, HEAD_DIM, dtype=torch.bfloat16)
        q, k, v = (wide[:, :, i].transpose(1, 2) for i in range(3))
        for _ in range(2):
            counting.counts = Counts()
            clear_attention(q, k, v, grid=grid, spec=ClearSpec(radius, down_factor), backend=backend)
    found = counting.counts
    return {
        "launches": found.launches,
        "attention_calls": found.attention_calls,
        "copied_bytes": found.copied_bytes,
        "score_bytes": 0 if kind.fused else 4 * found.most_scores,
    }


@contextmanager
def pretended(kind: Kind, counting: Counting) -> Generator[None]:
    """Answers what the pack asks of such a device, and stands in for attention and for compiled kernels."""
    from clear_core.attention import choose, lse
    from clear_core.attention.backends.flex import backend as flex
    from clear_core.attention.backends.triton import backend as triton
    from clear_core.attention.backends.triton.launch import BlockShape

    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        counting.counts.attention(q.shape[:-1].numel() * k.shape[-2])
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    def fused_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any, score: Any, options: Any, return_lse: bool) -> Tensor:
        counting.counts.attention()
        return torch.empty_like(q)

    def fused(parameters: Any, debug: bool = False) -> bool:
        return parameters[0].device == kind.device and kind.fused

    def tensor(data: Any, device: torch.device | None = None, **options: Any) -> Tensor:
        made = make_tensor(data, **options)
        return made if device is None else made.to(device)

    make_tensor = torch.tensor
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        replace(F, "scaled_dot_product_attention", attention)
        replace(torch, "tensor", tensor)
        replace(flex, "_compiled", lambda threads: fused_kernel)
        replace(triton, "launch", lambda *arguments: counting.counts.attention())
        replace(triton, "launch_pooling", lambda *arguments: counting.counts.attention())
        replace(triton, "shapes_for", lambda *arguments: (BlockShape(128, 64, 8, 3),))
        replace(lse, "_card_is_right", lambda *arguments: kind.fused)
        replace(choose, "_self_test", lambda *arguments: None)
        replace(torch.cuda, "_lazy_init", lambda: None)
        replace(torch.xpu, "_lazy_init", lambda: None)
        replace(torch.cuda, "mem_get_info", lambda device: (kind.free, 24 * GIB))
        replace(torch.cuda, "memory_reserved", lambda device: 0)
        replace(torch.cuda, "memory_allocated", lambda device: 0)
        replace(torch.cuda, "get_device_capability", lambda device: (8, 9))
        replace(torch.mps, "recommended_max_memory", lambda: kind.free)
        replace(torch.mps, "driver_allocated_memory", lambda: 0)
        replace(torch.backends.cuda, "SDPAParams", lambda *parameters: parameters)
        for name in ("can_use_flash_attention", "can_use_efficient_attention", "can_use_cudnn_attention"):
            replace(torch.backends.cuda, name, fused)
        yield


def count_all(sizes: list[str]) -> list[dict[str, Any]]:
    """Counts of every kind and backend: by "2K r16" or "2K r16 pooled"."""
    ignore_current_device()
    results: list[dict[str, Any]] = []
    for name, kind in KINDS.items():
        for backend in kind.backends:
            by_figure: dict[str, dict[str, int]] = {}
            for size in sizes:
                for radius in RADII:
                    for down_factor in DOWN_FACTORS:
                        case = f"{size} r{radius}{' pooled' if down_factor > 1 else ''}"
                        found = count(kind, backend, GRIDS[size], radius, down_factor)
                        for figure, value in found.items():
                            by_figure.setdefault(figure, {})[case] = value
                        print(f"{name:>28} {backend:>6} {case:>13} {found}", file=sys.stderr, flush=True)
            results.append({"kind": name, "backend": backend, **by_figure})
    return results


def count_revision(revision: str | None, sizes: list[str]) -> list[dict[str, Any]]:
    """Counts in a process of its own, of a revision, or of the working tree if it is None."""
    with tempfile.TemporaryDirectory() as folder:
        output, options = Path(folder, "counts.json"), ["--sizes", ",".join(sizes)]
        if revision is not None:
            archive = subprocess.run(
                ["git", "archive", revision, "clear_core"], cwd=PROJECT, check=True, capture_output=True
            ).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            options += ["--checkout", folder]
        command = [sys.executable, "-m", "benchmarks.launches", *options, "--counts", str(output)]
        subprocess.run(command, cwd=PROJECT, check=True)
        return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=first_line(__doc__))
    parser.add_argument("--before", help="a revision to count beside the working tree")
    parser.add_argument("--sizes", default=",".join(GRIDS), help="of 1K, 2K, 4K, 8K, with commas between them")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    parser.add_argument("--counts", type=Path, help="write the counts of one revision here, and nothing else")
    parser.add_argument("--checkout", type=Path, help="where clear_core of another revision lies")
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if options.counts:
        if options.checkout:
            sys.path.insert(0, str(options.checkout))
        options.counts.write_text(json.dumps(count_all(sizes)))
        return
    forms = {"before": options.before, "after": None} if options.before else {"after": None}
    results = [{"form": form, **one} for form, revision in forms.items() for one in count_revision(revision, sizes)]
    if options.output:
        settings = {"before": options.before, "text": TEXT, "heads": HEADS, "head_dim": HEAD_DIM, "dtype": "bfloat16"}
        write_record(options.output, torch.device("cpu"), settings, results)


if __name__ == "__main__":
    main()
