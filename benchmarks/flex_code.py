"""The code that torch's compiler writes for the flex backend on a card, without the card.

    python -m benchmarks.flex_code --capability 86 --kernels bfloat16-128,float16-64-lse --output code.json

A kernel is a dtype and a head size, with "-lse" if it returns the log-sum-exp, with "-overview" if its pooled keys are
an overview, and with "-before" if its mask divides and it checks the bounds of its blocks, as it did at first. A CPU
build of torch does; a C++ compiler must be there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.base import KernelError
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.backends.flex import block_mask
from clear_core.attention.call import AttentionCall
from clear_core.attention.pool import mean_weight
from clear_core.attention.tiling.plan import TilePlan, tile_plan

from .pretended_card import ignore_current_device, pretended_card
from .timing import first_line

PROJECT = Path(__file__).resolve().parents[1]
LAYOUT = SequenceLayout(512, (68, 120))
SPEC = ClearSpec(16)
HEADS = 24


@dataclass(frozen=True)
class Kernel:
    """What a kernel is compiled for; grid, window, texts and number of heads are arguments of it."""

    dtype: torch.dtype
    head_dim: int
    return_lse: bool = False
    before: bool = False
    overview: bool = False

    @property
    def spec(self) -> ClearSpec:
        return ClearSpec(SPEC.radius, 4, overview=True) if self.overview else SPEC

    @classmethod
    def named(cls, name: str) -> Kernel:
        """From a name such as ``float16-64-lse``."""
        dtype, head_dim, *more = name.split("-")
        return cls(getattr(torch, dtype), int(head_dim), "lse" in more, "before" in more, "overview" in more)


@dataclass(frozen=True)
class Code:
    """What the compiler wrote.

    Attributes:
        module: Python source: kernels as strings, and a function ``call`` that launches them.
        arguments: For each argument of ``call``, an expression that gives it from ``L``, the arguments of
            ``flex._fused`` by name.
    """

    module: str
    arguments: list[str]


class _WrittenError(Exception):
    """The code is there, and goes no further."""


def write_code(kernel: Kernel, capability: int) -> Code:
    """The code of one kernel. Call :func:`ignore_current_device` first; one capability in a process.

    Raises:
        KernelError: The compiler failed.
    """
    torch._dynamo.reset()
    with pretended_card(capability) as card, _form(kernel.before), _kept_code() as kept, torch.no_grad():
        flex._compiled.cache_clear()
        flex._kernel_options.cache_clear()
        fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
        plan = _on_card(tile_plan(LAYOUT, kernel.spec, torch.device("cpu")), card, fake)
        with fake, mock.patch.object(flex, "tile_plan", lambda *of: plan):
            q, k, v = torch.empty(3, 1, HEADS, LAYOUT.length, kernel.head_dim, dtype=kernel.dtype, device=card)
            try:
                flex.FLEX.run(_call(q, k, v, kernel))
            except KernelError:
                if not kept:
                    raise
    return Code(*kept)


def _call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: Kernel) -> AttentionCall:
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        layout=LAYOUT,
        query_rows=range(LAYOUT.grid[0]),
        spec=kernel.spec,
        spatial_weight=mean_weight(kernel.spec.down_factor) if kernel.overview else None,
        scale=q.shape[-1] ** -0.5,
        bias=None,
        chunk_bytes=None,
        on_chunk=lambda: None,
        return_lse=kernel.return_lse,
        needs_grad=False,
    )


def _on_card(plan: TilePlan, card: torch.device, fake: Any) -> TilePlan:
    """A plan whose lists say that they are on the card; made on the CPU, because their lengths must be read."""
    names = ("partial", "partial_count", "full", "full_count")
    with fake:
        lists = {name: torch.empty_like(getattr(plan, name), device=card) for name in names}
    return replace(plan, **lists)


@contextmanager
def _form(before: bool) -> Generator[None]:
    """The mask by division and blocks whose bounds are checked, if ``before``."""
    with ExitStack() as stack:
        if before:
            options = flex._kernel_options.__wrapped__

            def checked(device: torch.device) -> dict[str, int]:
                return {name: value for name, value in (options(device) or {}).items() if name != "fwd_IS_DIVISIBLE"}

            stack.enter_context(mock.patch.object(flex, "_kernel_options", lru_cache(checked)))
            stack.enter_context(mock.patch.object(block_mask, "mask_by_table", block_mask.mask_by_division))
        yield


@contextmanager
def _kept_code() -> Generator[list[Any]]:
    """Module and argument expressions of what is compiled meanwhile; the compiler stops once it has written them."""
    from torch._inductor import compile_fx, config
    from torch._inductor.graph import GraphLowering

    kept: list[Any] = []
    arguments: list[str] = []
    compile_graph = compile_fx.compile_fx

    def noted(graph: Any, inputs: Any, **options: Any) -> Any:
        sources: list[Any] = [
            node.meta["grapharg"].source.name for node in graph.graph.nodes if node.op == "placeholder"
        ]
        # A method before torch 2.10.
        arguments.extend(str(source() if callable(source) else source) for source in sources)
        return compile_graph(graph, inputs, **options)

    def written(lowering: Any) -> Any:
        kept.extend([lowering.codegen()[0].value, arguments])
        raise _WrittenError

    with (
        mock.patch.object(compile_fx, "compile_fx", noted),
        mock.patch.object(GraphLowering, "_compile_to_module", written),
        config.patch(force_disable_caches=True),
    ):
        yield kept


def environment() -> dict[str, str]:
    """The environment of a process that compiles: not in Triton's interpreter."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def read_code(python: str, capability: int, kernels: tuple[str, ...]) -> dict[str, Code]:
    """Code by the kernels' names, written in a process of its own by an interpreter's torch.

    Raises:
        RuntimeError: The process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "code.json")
        options = ["--capability", str(capability), "--kernels", ",".join(kernels), "--output", str(output)]
        command = [python, "-m", "benchmarks.flex_code", *options]
        found = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False)
        if found.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {found.stderr[-2000:]}")
        return {name: Code(**code) for name, code in json.loads(output.read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flex_code", description=first_line(__doc__))
    parser.add_argument("--capability", type=int, default=86, help="compute capability times ten")
    parser.add_argument("--kernels", default="bfloat16-128", help="names with commas between them")
    parser.add_argument("--output", type=Path, required=True, help="write the code here, as JSON by kernel")
    options = parser.parse_args()
    ignore_current_device()
    with tempfile.TemporaryDirectory() as folder:
        # The compiler leaves files there, because it is stopped.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        names = options.kernels.split(",")
        written = {name: asdict(write_code(Kernel.named(name), options.capability)) for name in names}
    options.output.write_text(json.dumps(written))


if __name__ == "__main__":
    main()
