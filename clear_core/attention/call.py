"""One attention call: what every backend gets, and what several backends need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..spec import ClearSpec
from .bias import AttentionBias
from .budget import default_chunk_bytes
from .fused import is_fused
from .pool import border_gain, has_cut_cells, pool_tokens


class Attended(NamedTuple):
    """Result of a call.

    Attributes:
        out: (B, heads, queries, D) in q's dtype.
        lse: (B, heads, queries) float32, log of the softmax denominators; None if it was not asked for.
    """

    out: Tensor
    lse: Tensor | None

    def of_item(self, index: int) -> Attended:
        """The rows of one item of the batch, as views."""
        item = slice(index, index + 1)
        return Attended(self.out[item], None if self.lse is None else self.lse[item])

    def of_heads(self, heads: slice) -> Attended:
        """The rows of some heads, as views."""
        return Attended(self.out[:, heads], None if self.lse is None else self.lse[:, heads])


class CallKind(NamedTuple):
    """Everything the choice of a backend may depend on. It is known before there is a call.

    Attributes:
        device, dtype, head_dim: Of q, k and v.
        grid: (h, w) of the image in tokens.
        spec: Window and pooling.
        needs_grad: Whether gradients are wanted.
        return_lse: Whether the log-sum-exp is wanted.
        masked: Whether there is an attention mask.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    grid: tuple[int, int]
    spec: ClearSpec
    needs_grad: bool = False
    return_lse: bool = False
    masked: bool = False


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of :func:`clear_core.clear_attention`, checked. Every backend takes this and nothing else.

    Attributes:
        q: (B, heads, T + rows * w + R, D): text, the image rows asked for, reference tokens.
        k, v: (B, heads, T + h * w + R, D): text, the whole image, reference tokens.
        layout: Of k and v.
        query_rows: The image rows whose queries are in q.
        spec: Window and pooling; guaranteed to have a radius whose square fits a 32-bit integer.
        spatial_weight: (d, d) pooling weights; None exactly if ``spec`` does not pool.
        scale: Factor on the query-key products.
        bias: Attention mask; guaranteed to fit q and ``layout``.
        chunk_bytes: Memory in bytes for one chunk of work, or None: the backend decides.
        on_chunk: Called after each chunk.
        return_lse: Whether the log-sum-exp is wanted.
        needs_grad: Whether gradients are wanted.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: SequenceLayout
    query_rows: range
    spec: ClearSpec
    spatial_weight: Tensor | None
    scale: float
    bias: AttentionBias | None
    chunk_bytes: int | None
    on_chunk: Callable[[], None]
    return_lse: bool
    needs_grad: bool

    @property
    def kind(self) -> CallKind:
        q = self.q
        grid, masked = self.layout.grid, self.bias is not None
        return CallKind(q.device, q.dtype, q.shape[-1], grid, self.spec, self.needs_grad, self.return_lse, masked)

    @property
    def image_queries(self) -> slice:
        """Positions of the image queries in q."""
        return slice(self.layout.text, self.q.shape[2] - self.layout.reference)

    @property
    def image_keys(self) -> slice:
        """Positions of the image tokens in k and v."""
        return self.layout.image_slice

    @cached_property
    def chunk_limit(self) -> int:
        """Memory in bytes for one chunk of work: ``chunk_bytes``, or by the size of the queries."""
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return default_chunk_bytes(self.q.device, self.q.numel() * self.q.element_size())

    @property
    def fused(self) -> bool:
        """Whether the device's attention keeps no scores in memory for such a call."""
        return is_fused(self.q.device, self.q.dtype, self.q.shape[-1], self.bias is not None)

    def empty_result(self) -> Attended:
        """Uninitialised. ``out`` is laid out token by token, so that the model's (B, L, heads * D) is a view of it."""
        batch, heads, length, head_dim = self.q.shape
        out = self.q.new_empty(batch, length, heads, head_dim).transpose(1, 2)
        return Attended(out, self.q.new_empty(out.shape[:3], dtype=torch.float32) if self.return_lse else None)

    def of_heads(self, heads: slice) -> AttentionCall:
        """The same call for some of the heads."""
        if heads == slice(0, self.q.shape[1]):
            return self
        bias = None if self.bias is None else self.bias.of_heads(heads)
        return replace(self, q=self.q[:, heads], k=self.k[:, heads], v=self.v[:, heads], bias=bias)

    def of_item(self, index: int) -> AttentionCall:
        """The same call for one item of the batch."""
        item = slice(index, index + 1)
        bias = None if self.bias is None else self.bias.item(index)
        return replace(self, q=self.q[item], k=self.k[item], v=self.v[item], bias=bias)

    def pooled(self) -> tuple[Tensor, Tensor] | None:
        """Pooled keys and values, (B, heads, cells, D); None without pooling."""
        if self.spatial_weight is None:
            return None
        return self._pool(self.k, self.spatial_weight), self._pool(self.v, self.spatial_weight)

    def prefix_parts(self, tokens: Tensor) -> list[Tensor]:
        """Keys or values that every image query sees, one after the other: text, reference, pooled tokens.

        Args:
            tokens: k or v.
        """
        image = self.image_keys
        parts = [tokens[:, :, : image.start], tokens[:, :, image.stop :]]
        if self.spatial_weight is not None:
            parts.append(self._pool(tokens, self.spatial_weight))
        return parts

    def _pool(self, tokens: Tensor, weight: Tensor) -> Tensor:
        return pool_tokens(tokens[:, :, self.image_keys], self.layout.grid, weight, self._border_gain)

    @cached_property
    def _border_gain(self) -> Tensor | None:
        """The same for keys and values; None if no cell is cut."""
        weight = self.spatial_weight
        if weight is None or not has_cut_cells(self.layout.grid, self.spec.down_factor):
            return None
        return border_gain(weight.to(self.k.device, torch.float32), self.layout.grid)


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will go backwards through one of these."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def padded_head_dim(head_dim: int) -> int:
    """The head size that compiled kernels work on, a power of two; zeros change neither products nor values."""
    return max(16, 1 << (head_dim - 1).bit_length())


def head_groups(heads: int, most: int, least: int = 1) -> list[slice]:
    """The heads in groups of about one size, of ``most`` heads or fewer, but never of fewer than ``least``."""
    groups = min(-(-heads // max(1, most)), max(1, heads // least))
    bounds = [heads * i // groups for i in range(groups + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
