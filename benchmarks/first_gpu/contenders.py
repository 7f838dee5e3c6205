"""Our backends, the published row-major order, and dense attention by torch's own kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clear_core import ClearSpec, SequenceLayout, cost
from clear_core.attention import BACKENDS

from ..attention import DENSE, ROW_MAJOR, attention
from .bench import Bench
from .compare import Contender, no_attention
from .inputs import keys_per_query

WINDOWED = tuple(name for name in BACKENDS if name not in ("auto", "dense"))
"""Backends that are timed: all but the oracle."""

DENSE_KERNELS = {DENSE: None, "sdpa, cuDNN": SDPBackend.CUDNN_ATTENTION, "sdpa, flash": SDPBackend.FLASH_ATTENTION}
"""Dense attention: torch's own choice, and its kernels one by one."""


def backends(
    layout: SequenceLayout, spec: ClearSpec, bench: Bench, names: tuple[str, ...] = WINDOWED
) -> list[Contender]:
    """Our backends by name; those that cannot run here are refused with their reason."""
    found: list[Contender] = []
    for name in names:
        found.append(
            Contender(
                name,
                attention(name, layout, spec, bench.device),
                keys_per_query(layout, spec),
                cost.clear_pairs(layout, spec),
                spec,
                bench.refusal(name),
            )
        )
    return found


def row_major(layout: SequenceLayout, spec: ClearSpec, bench: Bench) -> Contender:
    """What the published code does: FlexAttention over the row-major sequence."""
    compiled: list[Any] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        # Its block lists take seconds to build, so they are built when it is tried.
        if not compiled:
            compiled.append(attention(ROW_MAJOR, layout, spec, bench.device))
        return compiled[0](q, k, v)

    pairs = cost.clear_pairs(layout, spec)
    return Contender(ROW_MAJOR, attend, keys_per_query(layout, spec), pairs, spec)


def dense(layout: SequenceLayout) -> list[Contender]:
    """Ordinary attention, in which every query sees every key."""
    return [
        Contender(
            name, F.scaled_dot_product_attention if kernel is None else partial(_by, kernel), layout.length, pairs
        )
        for name, kernel in DENSE_KERNELS.items()
        for pairs in [cost.dense_pairs(layout)]
    ]


def _by(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel([kernel]):
        return F.scaled_dot_product_attention(q, k, v)


def refused(name: str, reason: str) -> Contender:
    """A contender that is not there."""
    return Contender(name, no_attention, 0, 0, refusal=reason)
