"""Counts what a call asks of a device that is not there: operations, bytes they write, scores of attention.

Large tensors have no memory, small ones that indices are made of lie on the CPU; both say that they are on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# Elements from which on a new tensor has no memory.
MOST_KEPT = 2**24

# Results without work: no memory is written.
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"_unsafe_view", "_reshape_alias", "alias", "detach", "lift_fresh"}
# These write as much as they are given, not all of their first argument.
PARTIAL = {"index_put", "index_put_", "index_copy_", "index_add_", "scatter_", "masked_scatter_"}


class PlacedTensor(Tensor):
    """A tensor that says it is on a device; ``held`` is on the CPU, or has no memory."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> PlacedTensor:
        placed = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        placed.held = inner
        return placed

    def __repr__(self, **options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"PlacedTensor({tuple(self.shape)}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(operation, args, kwargs or {}, None)


@dataclass
class Counts:
    """What a call asked for.

    Attributes:
        launches: Operations that run on the device, calls of attention included; views and empty tensors are none.
        copied_bytes: What all of them but attention write.
        attention_calls: Calls of attention, also by a compiled kernel.
        most_scores: Query-key pairs over batch and heads of the largest call of ``scaled_dot_product_attention``.
    """

    launches: int = 0
    copied_bytes: int = 0
    attention_calls: int = 0
    most_scores: int = 0

    def attention(self, scores: int = 0) -> None:
        """Counts one call of attention."""
        self.launches += 1
        self.attention_calls += 1
        self.most_scores = max(self.most_scores, scores)


class Counting(TorchDispatchMode):
    """Puts new tensors on the pretended device, and counts what is done with tensors there."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.counts = device, Counts()

    def tensor(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor on the device without memory."""
        return PlacedTensor(torch.empty(shape, dtype=dtype, device="meta"), self.device)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(isinstance(one, PlacedTensor) for one in tree_flatten((args, kwargs))[0])
        made = kwargs.get("device") == self.device and self.device.type != "cpu"
        if not there and not made:
            return operation(*args, **kwargs)
        result = dispatched(operation, args, kwargs, self.device)
        self._count(operation, args, result)
        return result

    def _count(self, operation: Any, args: Any, result: Any) -> None:
        name = operation._schema.name.split("::")[1]
        returned = [one.alias_info for one in operation._schema.returns]
        view = name in VIEWS or any(one is not None and not one.is_write for one in returned)
        if view or name in EMPTY or "size" in name or name == "is_pinned":
            return
        if "scaled_dot_product" in name:
            q, k = args[0], args[1]
            self.counts.attention(q.shape[:-1].numel() * k.shape[-2])
            return
        if name in PARTIAL:
            written = [one for one in tree_flatten(args[1:])[0] if isinstance(one, Tensor)][-1:]
        elif operation._schema.is_mutable:
            arguments = zip(operation._schema.arguments, args, strict=False)
            written = [one for about, one in arguments if about.alias_info is not None and about.alias_info.is_write]
        else:
            written = [one for one in tree_flatten(result)[0] if isinstance(one, Tensor)]
        copied = sum(math.prod(one.shape) * one.dtype.itemsize for one in written)
        # Nothing runs for no elements.
        self.counts.launches += copied > 0
        self.counts.copied_bytes += copied


def dispatched(operation: Any, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> Any:
    """The operation on the inner tensors; results say that they are on the device of the arguments, or ``device``."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    placed = [one for one in tensors if isinstance(one, PlacedTensor)]
    target = kwargs.get("device") or (placed[0].device if placed else device)
    inner = [one.held if isinstance(one, PlacedTensor) else one for one in tensors]
    bare = any(one.device.type == "meta" for one in inner)
    if not tensors:
        sizes = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        bare = math.prod(one for one in sizes if isinstance(one, int)) > MOST_KEPT

    def bared(one: Tensor) -> Tensor:
        one = one.held if isinstance(one, PlacedTensor) else one
        return one.to("meta") if bare and one.device.type != "meta" else one

    args, kwargs = tree_map_only(Tensor, bared, (args, kwargs))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta" if bare else "cpu")}
    result = operation(*args, **kwargs)
    if operation._schema.is_mutable and placed and isinstance(result, Tensor):
        # The argument itself, as in-place operations return it.
        return tensors[0]
    return tree_map_only(Tensor, lambda one: PlacedTensor(one, torch.device(target or "cpu")), result)
