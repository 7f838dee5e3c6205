"""1. Whether every backend is exact here, beside the oracle on a CPU."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from clear_core import clear_attention

from ..attention import TOLERANCE
from .bench import Bench, Measurement
from .contenders import WINDOWED
from .inputs import inside_projection
from .scale import Case, Scale

SECTION = "Exactness"
HEADS = 2
TAKES_MASKS = ("dense", "gather")
"""Backends that are asked for masked calls; the others hand them over to gathered tiles."""

DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def measurements(scale: Scale) -> list[Measurement]:
    return [
        Measurement(
            f"exact {name} {DTYPE_NAMES[dtype]}",
            SECTION,
            3 if name in TAKES_MASKS else 25,
            partial(measure, name, dtype),
        )
        for dtype in scale.exact_dtypes
        for name in ("dense", *WINDOWED)
        if name in TAKES_MASKS or dtype in scale.compiled_dtypes
    ]


def measure(name: str, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """Largest difference from the oracle in each case, relative to the largest value if that is above 1."""
    worst: dict[str, float] = {}
    reason = bench.refusal(name, dtype)
    if reason is None:
        _, reason = bench.attempt(name, partial(_run, name, dtype, bench, worst))
    result: dict[str, Any] = {"backend": name, "dtype": DTYPE_NAMES[dtype], "tolerance": TOLERANCE[dtype]}
    if reason is not None:
        return {**result, "errors": worst, "reason": reason, "exact": False, "line": reason}
    off = max(worst.values())
    exact = off <= TOLERANCE[dtype]
    line = f"{'exact' if exact else 'WRONG'}, off by at most {off:.1e} in {len(worst)} cases"
    return {**result, "errors": worst, "error": off, "exact": exact, "line": line}


def _run(name: str, dtype: torch.dtype, bench: Bench, worst: dict[str, float]) -> None:
    """Fills ``worst`` case by case, so that an error leaves what was found before."""
    for case in bench.scale.exact:
        if case.masked and name not in TAKES_MASKS:
            continue
        expected = oracle(case, dtype, bench.scale.head_dim)
        q, k, v = (one.to(bench.device) for one in tensors(case, dtype, bench.scale.head_dim))
        found = attend(case, q, k, inside_projection(v) if case.strided else v, name)
        error = (found.float().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1)
        worst[str(case)] = float(error)


def tensors(case: Case, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, ...]:
    """q, k, v as (B, L, heads, D) on the CPU, the same in every process."""
    shape = (3, case.batch, case.layout.length, HEADS, head_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()


@lru_cache(maxsize=32)
def oracle(case: Case, dtype: torch.dtype, head_dim: int) -> Tensor:
    """The reference in float32 on the CPU, since the device's own attention may be what is wrong."""
    q, k, v = (one.float() for one in tensors(case, dtype, head_dim))
    return attend(case, q, k, v, "dense")


def attend(case: Case, q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """One call; q, k, v are (B, L, heads, D)."""
    bias = None
    if case.masked:
        bias = torch.ones(1, 1, 1, case.layout.text, dtype=torch.bool, device=q.device)
        bias[..., case.layout.text // 2 :] = False
    strided = (one.transpose(1, 2) for one in (q, k, v))
    q, k, v = strided if case.strided else (one.contiguous() for one in strided)
    out = clear_attention(
        q,
        k,
        v,
        grid=case.layout.grid,
        spec=case.spec,
        reference_tokens=case.layout.reference,
        bias=bias,
        backend=backend,
    )
    assert isinstance(out, Tensor)
    return out
