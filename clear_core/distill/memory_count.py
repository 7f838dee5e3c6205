"""Counts the bytes of all tensors that live at the same time, on any device, "meta" included."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class MemoryCount(TorchDispatchMode):
    """Counts storages while it is open; a storage counts once, however many tensors show it.

    What a kernel takes for itself and gives back is not seen.

    Attributes:
        now: Bytes that live now.
        peak: Most bytes so far.

    Args:
        ignored: Tensors whose storages do not count: what stays on the CPU while a block is on a card.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}
        self._ignored = {_key(plain) for tensor in ignored for plain in plain_tensors(tensor)}
        self._kept = list(ignored)

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor from now until its storage is gone."""
        for plain in plain_tensors(tensor):
            storage = plain.untyped_storage()
            key = _key(plain)
            if key in self._seen or key in self._ignored:
                continue
            size = storage.nbytes()
            self._seen[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that a tensor consists of: itself, or the inner ones of a quantised one."""
    found: list[Tensor] = []
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for name in flatten()[0]:
            found += plain_tensors(getattr(tensor, name))
        return found
    state: Any = getattr(tensor, "quant_state", None)
    scales: list[Any] = [] if state is None else [state.absmax, state.code]
    if state is not None and state.nested:
        scales += [state.offset, state.state2.absmax, state.state2.code]
    return [tensor.detach(), *(scale for scale in scales if isinstance(scale, Tensor))]


def _key(tensor: Tensor) -> int:
    # On "meta" every storage has the address 0.
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  the only name of a storage


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, shared storages once."""
    sizes = {_key(plain): plain.untyped_storage().nbytes() for tensor in tensors for plain in plain_tensors(tensor)}
    return sum(sizes.values())
