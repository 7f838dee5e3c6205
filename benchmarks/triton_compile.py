"""What the Triton kernel compiles to, without a GPU: registers, spills, shared memory and programs on a multiprocessor.

    python -m benchmarks.triton_compile --output benchmarks/records/triton_compile.json

The compiler and the assembler come with Triton. A count of what was generated, not a measurement of speed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from clear_core.attention.backends.triton.block_shapes import candidate_shapes
from clear_core.attention.backends.triton.launch import BlockShape, OverviewLists, kernel_constants
from clear_core.progress import bar

from .timing import first_line, write_record

# Shared memory in KB by compute capability: of a multiprocessor, and the most that one program may take.
SHARED_KB = {80: (164, 163), 86: (100, 99), 89: (100, 99), 90: (228, 227), 100: (228, 227), 120: (100, 99)}
REGISTERS = 65536
WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


def compile_kernel(
    capability: int, dtype: str, head_dim: int, shape: BlockShape, *, overview: bool = False, **constants: Any
) -> Any:
    """The kernel as it is compiled at the first call with ordinary tensors: aligned, strides multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget

    from clear_core.attention.backends.triton.kernel import SIZES, STRIDES, clear_kernel

    fixed = {**kernel_constants(shape, head_dim, inside=16**2), "UNIT": 16, **constants}
    if not overview:
        fixed |= OverviewLists()._asdict()
    options = {name: fixed.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        **dict.fromkeys(("lse", "cell_logs", "table"), "*fp32"),
        "scale": "fp32",
        **dict.fromkeys(fixed, "constexpr"),
        **dict.fromkeys(SIZES, "i32"),
        **dict.fromkeys(STRIDES, "i64"),
        **dict.fromkeys(("q", "k", "v", "prefix_k", "prefix_v", "out"), f"*{DTYPES[dtype]}"),
    }
    signature = {name: types.get(name, "*i32") for name in clear_kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") and name != "lse"
    }
    indices = {name: index for index, name in enumerate(signature)}
    source = triton.compiler.ASTSource(
        clear_kernel, signature, {(indices[name],): value for name, value in fixed.items()}, aligned
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any, capability: int, warps: int) -> dict[str, Any]:
    """Resources of a compiled kernel, and the number of programs that fit on a multiprocessor."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(compiled.asm["ptx"])
        target = captured(r"\.target (sm_\w+)", compiled.asm["ptx"])
        report = _tool(
            "ptxas-blackwell" if capability >= 100 else "ptxas",
            "--verbose",
            f"--gpu-name={target}",
            str(source),
            "--output-file",
            str(binary),
        ).stderr
        code = _tool("nvdisasm", "--print-code", str(binary)).stdout
    ptx = compiled.asm["ptx"]
    tensor_cores = next((name for name in TENSOR_CORES if name in ptx), "none")
    loops = inner_loops(code, "FFMA" if tensor_cores == "none" else "MMA")
    registers = int(captured(r"Used (\d+) registers", report))
    shared = compiled.metadata.shared
    whole, most = (1024 * kb for kb in SHARED_KB[capability])
    # Registers are allocated per warp in steps of 256, and every program takes 1 KB of shared memory besides its own.
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    programs = 0 if shared > most else min(by_registers, whole // (shared + 1024), WARPS[capability] // warps)
    return {
        "registers": registers,
        "spilled_bytes": int(captured(r"(\d+) bytes spill stores", report)),
        "spills_in_loops": sum(loop["LDL"] + loop["STL"] for loop in loops),
        "loop_instructions": [sum(loop.values()) for loop in loops],
        "shared_bytes": shared,
        "fits": shared <= most,
        "programs_per_sm": programs,
        "tensor_cores": tensor_cores,
        "wide_async_copies": len(re.findall(r"cp\.async\.cg", ptx)),
    }


def captured(pattern: str, text: str) -> str:
    """The first group of a pattern in a tool's output.

    Raises:
        ValueError: The output has another form.
    """
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{pattern!r} is not in the output of the compiler: {text[:200]!r}.")
    return match.group(1)


def inner_loops(disassembly: str, multiplies: str) -> list[Counter[str]]:
    """Count of each instruction in every innermost loop, in the order of the code.

    Args:
        multiplies: Ending of an instruction that a loop must have; other loops wait or divide.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label.group(1)] = len(names)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", line):
            names.append(instruction.group(1))
            target = re.search(r"BRA.*?`\((\.L_x_\d+)\)", line)
            start = labels.get(target.group(1), len(names)) if target else len(names)
            if any(name.endswith(multiplies) for name in names[start:]):
                spans.append((start, len(names)))
    inner = [(start, stop) for start, stop in spans if not any(start <= a and b < stop for a, b in spans)]
    return [Counter(names[start:stop]) for start, stop in inner]


def _tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_compile", description=first_line(__doc__))
    parser.add_argument("--capability", default="80,86,89,90,100,120", help="compute capabilities times ten")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    wanted = [
        (int(one), shape)
        for one in options.capability.split(",")
        for shape in candidate_shapes("cuda", divmod(int(one), 10), getattr(torch, options.dtype), options.head_dim)
    ]
    results: list[dict[str, Any]] = []
    for capability, shape in bar(wanted, unit="kernel", desc="compiling", leave=False):
        start = time.perf_counter()
        compiled = compile_kernel(capability, options.dtype, options.head_dim, shape)
        results.append(
            {
                "capability": capability,
                "shape": str(shape),
                **resources(compiled, capability, shape.warps),
                "compile_seconds": round(time.perf_counter() - start, 1),
            }
        )
    print(
        f"{'card':>5} {'queries x keys':>30} {'registers':>9} {'spilled':>8} {'in loops':>8} {'shared':>7} "
        f"{'programs':>8}  tensor cores"
    )
    for one in results:
        print(
            f"{one['capability'] / 10:>5} {one['shape']:>30} {one['registers']:>9} {one['spilled_bytes']:>6} B "
            f"{one['spills_in_loops']:>8} {one['shared_bytes'] // 1024:>4} KB {one['programs_per_sm']:>8}  "
            f"{one['tensor_cores']}"
        )
    if options.output:
        import triton

        settings = {"triton": triton.__version__, "dtype": options.dtype, "head_dim": options.head_dim}
        write_record(options.output, torch.device("cpu"), settings, results)


if __name__ == "__main__":
    main()
