"""A backend's kernel beside the reference, before its first use: what is compiled here was never tried elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..spec import ClearSpec
from .backends.base import Backend, KernelError
from .backends.dense import DENSE
from .call import AttentionCall, CallKind
from .pool import mean_weight

# Largest error, for values of about 1: more than any dtype's rounding, less than any wrong mask.
TOLERANCE = 0.03

_LAYOUT = SequenceLayout(7, (20, 13), 2)
_CASES = (_LAYOUT, ClearSpec(5)), (_LAYOUT, ClearSpec(5, 3))
# High enough for whole blocks of cells far above and far below some windows; cells are cut at both borders.
_OVERVIEW_CASES = ((SequenceLayout(7, (45, 13), 2), ClearSpec(3, 2, overview=True)),)
_HEADS = 2


def run_self_test(backend: Backend, kind: CallKind) -> str | None:
    """Small odd cases beside the reference in float32 on a CPU: a window alone, and one with pooled keys; or, if the
    kernel is for an overview, one with some cells near, cut, far, and without tokens outside.

    V is a view into wider rows, as models have it.

    Args:
        kind: Device, dtype, head size, whether gradients and the log-sum-exp are wanted, and whether there is an
            overview; its grid and radius are not used.

    Returns:
        What is wrong, as the end of a sentence; None if nothing is.

    Raises:
        KernelError: The kernel cannot be compiled or run, forward or backward.
    """
    for layout, spec in _OVERVIEW_CASES if kind.spec.overview else _CASES:
        with _with_grad() if kind.needs_grad else nullcontext():
            error = _largest_error(backend, kind, layout, spec)
        if not error < TOLERANCE:
            return f"its kernel is off by {error:.2g} in a small test on {kind.device}"
    return None


@contextmanager
def _with_grad() -> Generator[None]:
    """Not taken without need: another mode than the call's would have the kernel compiled once more.

    A model with checkpoints counts the tensors that its blocks save; those of the test are not among them.
    """
    own = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    with torch.inference_mode(False), torch.enable_grad(), own:
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _largest_error(backend: Backend, kind: CallKind, layout: SequenceLayout, spec: ClearSpec) -> float:
    """Largest difference from the reference, of a gradient relative to the largest; NaN if one is."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, layout.length, _HEADS, 2 * kind.head_dim)
    wide = torch.randn(shape, generator=generator).to(kind.device, kind.dtype).requires_grad_(kind.needs_grad)
    slope = torch.randn(1, _HEADS, layout.length, kind.head_dim, generator=generator)
    call = _call(wide, kind, layout, spec)
    # The device's own attention may be what is wrong.
    exact = wide.detach().float().cpu().requires_grad_(kind.needs_grad)
    found, expected = backend.run(call), DENSE.run(_call(exact, kind, layout, spec))
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    # Not Python's max, which passes over a NaN.
    errors = [(a.detach().float().cpu() - b.detach()).abs().max() for a, b in pairs]
    if not kind.needs_grad:
        return float(torch.stack(errors).max())
    (gradient,) = torch.autograd.grad(expected.out, exact, slope)
    off = (_gradient(backend, found.out, wide, slope).float().cpu() - gradient).abs().max()
    return float(torch.stack([*errors, off / gradient.abs().max()]).max())


def _gradient(backend: Backend, out: Tensor, leaf: Tensor, slope: Tensor) -> Tensor:
    """The backward kernel is compiled when it is first asked for, and fails then."""
    try:
        return torch.autograd.grad(out, leaf, slope.to(out))[0]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Compilers raise errors of many kinds, most of them private.
        raise KernelError(backend.name, error) from error


def _call(wide: Tensor, kind: CallKind, layout: SequenceLayout, spec: ClearSpec) -> AttentionCall:
    q, k, v = (one[..., kind.head_dim :].transpose(1, 2) for one in wide.unbind())
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        layout=layout,
        query_rows=range(layout.grid[0]),
        spec=spec,
        spatial_weight=mean_weight(spec.down_factor) if spec.pools else None,
        scale=kind.head_dim**-0.5,
        bias=None,
        chunk_bytes=None,
        on_chunk=lambda: None,
        return_lse=kind.return_lse,
        needs_grad=kind.needs_grad,
    )
