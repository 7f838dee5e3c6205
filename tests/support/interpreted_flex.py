"""Runs the flex backend with the kernel that is emitted for a card, in Triton's interpreter, beside the dense oracle.

Meant for a process of its own, started with TRITON_INTERPRET=1: the variable is read when Triton is imported.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.emitted_kernels import EmittedKernel, emitted_kernels, module_of
from benchmarks.flex_code import Code
from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import DENSE
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.backends.flex import block_mask
from clear_core.attention.call import AttentionCall
from clear_core.attention.pool import mean_weight

# Elements of one program of a kernel that the compiler leaves open.
XBLOCK = 1024


@dataclass(frozen=True)
class Case:
    """One call, small because the interpreter is slow.

    Attributes:
        kernel: Name of the emitted kernel that serves it, as in ``benchmarks.flex_code``.
        rows: Image rows of the queries; None is all.
    """

    kernel: str
    grid: tuple[int, int]
    text: int
    reference: int
    radius: int
    down_factor: int = 1
    batch: int = 1
    heads: int = 2
    rows: range | None = None

    def __str__(self) -> str:
        d = f"d{self.down_factor}-" if self.down_factor > 1 else ""
        rows = "" if self.rows is None else f"-rows{self.rows.start}to{self.rows.stop}"
        size = f"{self.grid[0]}x{self.grid[1]}-T{self.text}-R{self.reference}-r{self.radius}"
        return f"{self.kernel}-{size}-{d}b{self.batch}x{self.heads}{rows}"

    def call(self) -> AttentionCall:
        """With values of a half type, in float32."""
        dtype, head_dim, *more = self.kernel.split("-")
        layout = SequenceLayout(self.text, self.grid, self.reference)
        spec = ClearSpec(self.radius, self.down_factor, "overview" in more)
        rows = range(self.grid[0]) if self.rows is None else self.rows
        left_out = (self.grid[0] - len(rows)) * self.grid[1]
        generator = torch.Generator().manual_seed(len(str(self)))
        wide = torch.randn(3, self.batch, layout.length, self.heads, 2 * int(head_dim), generator=generator)
        q, k, v = (one[..., int(head_dim) :].transpose(1, 2) for one in wide.to(getattr(torch, dtype)).float())
        return AttentionCall(
            q=q[:, :, left_out:],
            k=k,
            v=v,
            layout=layout,
            query_rows=rows,
            spec=spec,
            spatial_weight=mean_weight(self.down_factor) if spec.pools else None,
            scale=int(head_dim) ** -0.5,
            bias=None,
            chunk_bytes=None,
            on_chunk=lambda: None,
            return_lse="lse" in more,
            needs_grad=False,
        )


def errors(code: Code, case: Case) -> list[float]:
    """Largest difference from the oracle of the output, and of the log-sum-exp if the case wants it.

    What is read before it was written is NaN (``interpreted_triton.prepare``), and so are these then.
    """
    call = case.call()
    half = {name: getattr(call, name).to(getattr(torch, case.kernel.split("-")[0])) for name in ("q", "k", "v")}
    expected = DENSE.run(call)
    found = run_emitted(code, replace(call, **half))
    pairs = zip(found, expected, strict=True)
    return [float((one.float() - other).abs().max()) for one, other in pairs if one is not None]


def run_emitted(code: Code, call: AttentionCall) -> Any:
    """The backend's own way, except that the compiled kernel is the emitted one."""
    with tempfile.TemporaryDirectory() as folder:
        return run_as_on_a_card(emitted(code, Path(folder)), call)


def run_as_on_a_card(fused: Callable[..., Any], call: AttentionCall) -> Any:
    """The backend's own way with another compiled kernel, a card's block mask and a card's options."""
    options = {"BLOCK_M": 128, "BLOCK_N": 64, "fwd_IS_DIVISIBLE": True, "num_stages": 2}
    with (
        mock.patch.object(flex, "_compiled", lambda threads: fused),
        mock.patch.object(flex, "_kernel_options", lambda device: options),
        mock.patch.object(flex, "block_mask", lambda plan, grad: block_mask.block_mask_for(plan, grad, card=True)),
    ):
        return flex.FLEX.run(call)


def emitted(code: Code, folder: Path) -> Callable[..., Any]:
    """A function as ``flex._fused`` that launches the emitted kernels in the interpreter."""
    (function,) = (
        node for node in ast.walk(ast.parse(code.module)) if isinstance(node, ast.FunctionDef) and node.name == "call"
    )
    function.args.args = function.args.args[-1:]  # without self
    source = f"def arguments(L):\n    return [{', '.join(code.arguments)}]\n\n\n{ast.unparse(function)}\n"
    module = module_of(source, "emitted_call", folder)
    launchers = {name: _Launcher(kernel) for name, kernel in emitted_kernels(code.module, folder).items()}
    vars(module).update({**_RUNTIME, **launchers})

    def launch(
        q: Any, k: Any, v: Any, mask: Any, score_mod: Any, kernel_options: dict[str, int], return_lse: bool
    ) -> Any:
        result = module.call(module.arguments(locals()))
        return result if return_lse else result[0]

    return launch


class _Launcher:
    """A kernel as the emitted code runs it."""

    def __init__(self, kernel: EmittedKernel) -> None:
        self.kernel = kernel

    def run(self, *arguments: Any, stream: int) -> None:
        names = list(self.kernel.signature)
        values = dict(zip(names, arguments, strict=False))
        if self.kernel.options["inductor_meta"]["grid_type"] == "FixedGrid":
            grid = tuple(arguments[len(names) :])
        else:
            values["XBLOCK"] = XBLOCK
            grid = (-(-values["xnumel"] // XBLOCK),)
        self.kernel.function[grid](**values)


class _NoDevice:
    """The current device, which is none."""

    def __init__(self, index: int) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_RUNTIME = {
    "torch": SimpleNamespace(
        cuda=SimpleNamespace(_DeviceGuard=_NoDevice, set_device=lambda index: None),
        **{name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "int32")},
    ),
    "empty_strided_cuda": lambda shape, stride, dtype: torch.empty_strided(shape, stride, dtype=dtype),
    "assert_size_stride": torch._C._dynamo.guards.assert_size_stride,
    "copy_if_misaligned": lambda tensor: tensor,
    "get_raw_stream": lambda index: 0,
}
