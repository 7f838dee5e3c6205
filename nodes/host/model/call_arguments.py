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


def heads_apart(args: Arguments, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Views of q, k and v as (B, heads, tokens, head size); None if they cannot be given that shape."""
    q, k, v = args[:3]
    if argument("skip_reshape", 6, args, kwargs):
        return (q, k, v) if q.ndim == 4 else None
    heads = argument("heads", 3, args, kwargs)
    if q.ndim != 3 or not heads or q.shape[-1] % heads:
        return None
    # Some models (SD3) hand on values that have their heads already.
    q, k, v = (each.reshape(each.shape[0], -1, heads, q.shape[-1] // heads).transpose(1, 2) for each in (q, k, v))
    return q, k, v


def head_size(args: Arguments, kwargs: dict[str, Any]) -> int:
    """Size of one head of a call's queries."""
    q = args[0]
    return q.shape[-1] if q.ndim == 4 else q.shape[-1] // argument("heads", 3, args, kwargs)


def shape_fault(q: Tensor) -> str:
    """Says that the queries of a call have a shape that is not known."""
    return f"an attention call has queries of shape {tuple(q.shape)}, expected (batch, heads, tokens, head size)"


def misfit(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> str | None:
    """Why these tensors are not the joint sequence of a call, or None.

    Args:
        q, k, v: By heads.
        layout: The sequence of the call.
    """
    if k.shape != q.shape or v.shape != q.shape:
        return (
            f"an attention call has {q.shape[2]} queries but {k.shape[-2]} keys and {v.shape[-2]} values "
            "(another node changed them)"
        )
    if min(layout.text, layout.reference) < 0 or q.shape[2] != layout.length:
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
