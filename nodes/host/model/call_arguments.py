"""Arguments of one attention call of the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....clear_core.attention import device_fault
from ....clear_core.layout import SequenceLayout

Arguments = tuple[Any, ...]


def argument(name: str, position: int, args: Arguments, kwargs: dict[str, Any]) -> Any:
    """An argument of the host's ``optimized_attention``, given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name)


def block_of(kwargs: dict[str, Any]) -> tuple[str | None, int | None]:
    """The block of an attention call, in the host's numbering."""
    options = kwargs.get("transformer_options") or {}
    return options.get("block_type"), options.get("block_index")


def misfit(q: Tensor, k: Tensor, v: Tensor, by_heads: bool, layout: SequenceLayout) -> str | None:
    """Why these tensors are not the joint sequence of a call, or None.

    Args:
        by_heads: Whether the heads have a dimension of their own.
        layout: The sequence of the call.
    """
    if q.ndim != 4 or not by_heads:
        return f"an attention call has queries of shape {tuple(q.shape)}, expected (batch, heads, tokens, head size)"
    if k.shape != q.shape or v.shape != q.shape:
        return (
            f"an attention call has {q.shape[2]} queries but {k.shape[2]} keys and {v.shape[2]} values "
            "(another node changed them)"
        )
    if layout.reference < 0 or q.shape[2] != layout.length:
        return (
            f"a sequence has {q.shape[2]} tokens, but {layout.text} text, {layout.grid[0]} x {layout.grid[1]} image "
            f"and {layout.reference} reference tokens were expected (another node changed them)"
        )
    return None


def fault_of(q: Tensor) -> str | None:
    """Why windows cannot be computed on the queries' device, or None."""
    fault = device_fault(q.device, q.dtype, q.shape[-1])
    return fault and f"the attention of this torch ({torch.__version__}) is wrong on {q.device} ({fault})"


def as_host(out: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    """(B, heads, L, D) in the form that the call asks for."""
    return out if argument("skip_output_reshape", 7, args, kwargs) else out.transpose(1, 2).flatten(2)
