"""Which backend runs: one check says what can run here, for the choice and for the message alike."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..spec import ClearSpec
from .backends.dense import dense_attention
from .backends.flex import FlexFailure, flex_attention, padded_head_dim
from .backends.gather import gather_attention
from .backends.triton.backend import TritonFailure, triton_attention, triton_unavailable_reason
from .bias import AttentionBias
from .outside_image import wants_grad

BACKENDS = ("auto", "dense", "gather", "flex", "triton")
"""Names that ``clear_attention`` takes as ``backend``."""

logger = logging.getLogger(__name__)

_FLEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# What the self-test may be off by, for values of about 1: more than any dtype's rounding, less than any wrong mask.
_SELF_TEST_TOLERANCE = 0.03

_said: set[str] = set()

# (name, device, dtype, head size, log-sum-exp) for which a kernel failed after its self-test: it is not tried again.
_dropped: set[tuple[str, torch.device, torch.dtype, int, bool]] = set()


def unavailable_reason(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    needs_grad: bool = False,
    return_lse: bool = False,
) -> str | None:
    """Why a backend cannot run, as the end of a sentence; None where it can.

    The first question about "flex" or "triton" compiles a small self-test, which takes seconds.

    Args:
        name: One of :data:`BACKENDS`.
        needs_grad: Whether gradients are wanted.
        return_lse: Whether the log-sum-exp is wanted.
    """
    if name == "triton":
        reason = triton_unavailable_reason(device, dtype, needs_grad)
        return reason or _triton_self_test(device, dtype, padded_head_dim(head_dim))
    if name != "flex":
        return None
    if device.type not in ("cuda", "cpu"):
        return f"FlexAttention has no kernel for {device.type} devices that is used here"
    if dtype not in _FLEX_DTYPES:
        return f"FlexAttention's kernel does not take {dtype}"
    if device.type == "cpu":
        if needs_grad:
            return "FlexAttention has no gradient on a CPU"
        if return_lse:
            return "FlexAttention returns no log-sum-exp on a CPU"
    elif importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return _flex_self_test(device, dtype, padded_head_dim(head_dim), return_lse)


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    grid: tuple[int, int],
    spec: ClearSpec,
    *,
    needs_grad: bool = False,
    return_lse: bool = False,
) -> tuple[str, str]:
    """What "auto" takes, and why.

    Returns:
        The backend's name and one sentence.
    """
    if _is_ordinary(spec, grid):
        return "dense", f"Every window covers the grid of {grid[0]} x {grid[1]} tokens, so attention is ordinary."
    if device.type == "cpu":
        return "gather", "On a CPU gathered tiles are faster than a compiled kernel."
    reason = unavailable_reason("flex", device, dtype, head_dim, needs_grad=needs_grad, return_lse=return_lse)
    if reason is None:
        return "flex", f"FlexAttention's compiled kernel works on {device}."
    return "gather", f"FlexAttention is not used because {reason}."


def explain_backend(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, grid: tuple[int, int], spec: ClearSpec
) -> tuple[str, str]:
    """What ``backend="auto"`` takes for such a call, and one sentence that says why."""
    return choose_backend(torch.device(device), dtype, head_dim, grid, spec)


def _is_ordinary(spec: ClearSpec, grid: tuple[int, int]) -> bool:
    return spec.covers(grid) and not spec.pools


def run_backend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: SequenceLayout,
    spec: ClearSpec,
    bias: AttentionBias | None,
    return_lse: bool,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the backend of that name, or what "auto" stands for.

    Raises:
        ValueError: The backend cannot run here.
    """
    wanted = {"needs_grad": wants_grad(q, k, v), "return_lse": return_lse}
    if bias is not None:
        options["bias"] = bias
        name = _backend_for_bias(name, q.device, spec, layout.grid)
    if name == "auto":
        name, why = choose_backend(q.device, q.dtype, q.shape[-1], layout.grid, spec, **wanted)
        if name == "gather" and q.device.type == "cuda":
            _say_once(why)
    else:
        reason = unavailable_reason(name, q.device, q.dtype, q.shape[-1], **wanted)
        if reason is not None:
            raise ValueError(f"backend is {name!r}, but {reason}; use 'auto' or 'gather'.")
    case = (name, q.device, q.dtype, q.shape[-1], return_lse)
    if case in _dropped:
        name = "gather"
    run: Callable[..., Any] = {
        "dense": dense_attention,
        "gather": gather_attention,
        "flex": flex_attention,
        "triton": triton_attention,
    }[name]
    options.update(layout=layout, spec=spec, return_lse=return_lse)
    try:
        return run(q, k, v, **options)
    except (FlexFailure, TritonFailure) as failure:
        _dropped.add(case)
        _say_once(f"{'FlexAttention' if name == 'flex' else 'The Triton kernel'} failed ({failure}).")
    return gather_attention(q, k, v, **options)


def _backend_for_bias(name: str, device: torch.device, spec: ClearSpec, grid: tuple[int, int]) -> str:
    """The backend of that name, or the one that stands in for it where an attention mask is set."""
    if name in ("dense", "gather"):
        return name
    if name == "auto" and _is_ordinary(spec, grid):
        return "dense"
    if name != "auto" or device.type == "cuda":
        _say_once("The compiled kernels take no attention mask.")
    return "gather"


def _say_once(cause: str) -> None:
    if cause not in _said:
        _said.add(cause)
        logger.warning("CLEAR attention: %s The results are the same, from gathered tiles.", cause)


@lru_cache(maxsize=32)
def _flex_self_test(device: torch.device, dtype: torch.dtype, head_dim: int, return_lse: bool) -> str | None:
    return _self_test(flex_attention, device, dtype, head_dim, return_lse)


@lru_cache(maxsize=32)
def _triton_self_test(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return _self_test(triton_attention, device, dtype, head_dim, return_lse=True)


def _self_test(
    run: Callable[..., Any], device: torch.device, dtype: torch.dtype, head_dim: int, return_lse: bool
) -> str | None:
    """Runs a kernel on a small odd case beside the oracle; what is wrong, or None. Asked once for each cause."""
    layout, spec = SequenceLayout.of(20 * 13 + 7, (20, 13), reference=2), ClearSpec(5)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.length, head_dim, generator=generator).to(device, dtype) for _ in range(3))
    options = {"layout": layout, "spec": spec, "spatial_weight": None, "scale": head_dim**-0.5, "return_lse": True}
    expected = dense_attention(q.float(), k.float(), v.float(), **options)
    options["return_lse"] = return_lse
    try:
        found = run(q, k, v, **options)
    except (FlexFailure, TritonFailure, torch.OutOfMemoryError) as error:
        return f"its kernel does not run here ({str(error).splitlines()[0]})"
    found = found if return_lse else (found,)
    error = max(float((a.float() - b).abs().max()) for a, b in zip(found, expected, strict=False))
    if not error < _SELF_TEST_TOLERANCE:
        return f"its kernel is off by {error:.2g} in a small test on {device}"
    return None
