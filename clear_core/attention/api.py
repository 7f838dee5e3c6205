"""``clear_attention``: checks its arguments once, for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..scale import attention_scale
from ..spec import ClearSpec
from ..wording import quoted
from .bias import AttentionBias
from .call import Attended, AttentionCall, wants_grad
from .choose import run_backend
from .pool import mean_weight

_SMALLEST_HEAD, _LARGEST_HEAD = 16, 128

_Function = TypeVar("_Function")


def untraced(function: _Function) -> _Function:
    """``torch.compiler.disable`` with a type: the function keeps its own."""
    return cast("_Function", torch.compiler.disable(function))


@untraced
def clear_attention(  # noqa: PLR0913 - the one public call; everything behind it takes an AttentionCall
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int],
    spec: ClearSpec,
    spatial_weight: Tensor | None = None,
    scale: float | None = None,
    reference_tokens: int = 0,
    query_rows: range | None = None,
    bias: Tensor | AttentionBias | None = None,
    chunk_bytes: int | None = None,
    on_chunk: Callable[[], None] | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one FLUX block with a circular window around every image token (arXiv 2412.16112).

    Args:
        q, k, v: (B, heads, L, D), text first, then the image row-major, then reference tokens; norm and RoPE
            applied. D is 16 to 128; any strides.
        grid: (h, w) of the image in tokens; the text length is ``T = L - h * w - reference_tokens``.
        spec: Window radius and down factor.
        spatial_weight: (d, d) pooling weights of this block (the published (1,1,1,d,1,d,1) is taken too);
            None pools by the mean. Not used when ``spec.down_factor`` is 1, refused with an overview.
        scale: Factor on the query-key products; None is ``1/sqrt(D)``.
        reference_tokens: Tokens at the end that every query sees and that see every text, image and reference
            token (no pooled ones).
        query_rows: Rows of the grid whose queries are wanted; None is all. q then has T + rows * w + R tokens: text,
            these rows, reference tokens; k and v hold the whole grid. Only these rows are computed.
        bias: Attention mask over the text columns, (B|1, heads|1, L|1, T), or over all, (B|1, heads|1, L|1, L): bool,
            True if a key is seen, or float, added to the scaled scores of the keys inside the window. Its rows are
            q's. Pooled keys stand for image keys: a row's value for all image keys is theirs too. A bias that differs
            between image keys is refused with pooling; with an overview a cell weighs what its tokens outside do. A
            query that sees no key at all gets zeros (and a log-sum-exp of -inf), as from
            ``scaled_dot_product_attention``. It gets no gradient. A tensor over all columns is classified in every
            call; an :class:`.AttentionBias` was classified once. "flex" and "triton" leave masks to "gather".
        chunk_bytes: Bytes that one chunk of work may take besides input and output, 1 or more; None decides. A single
            query tile is never split. "gather" holds copies of some heads besides: up to four times as many bytes, or
            those of one head (three times its q).
        on_chunk: Called after each chunk. An exception raised in it ends the attention, as an interrupt does.
        return_lse: Return the log-sum-exp of the scores as well. It has no gradient.
        backend: One of :data:`BACKENDS`; "auto" takes the fastest that is known to be right here.

    Returns:
        As q in shape and dtype; with ``return_lse`` also (B, heads, queries) float32, the natural logarithm of each
        query's softmax denominator.

    Not traced by ``torch.compile``: a compiled model calls it as it is, with the window of each call.

    Raises:
        ValueError: A value does not fit; the message names it and what was expected.
    """
    attend = PreparedAttention(
        grid=grid,
        spec=spec,
        scale=scale,
        reference_tokens=reference_tokens,
        query_rows=query_rows,
        chunk_bytes=chunk_bytes,
        on_chunk=on_chunk,
        backend=backend,
    )
    out, lse = attend(q, k, v, spatial_weight=spatial_weight, bias=bias, return_lse=return_lse)
    return out if lse is None else (out, lse)


class PreparedAttention:
    """:func:`clear_attention` for the blocks of one call of a model: what is the same for all is checked once.

    Takes the arguments of the same names. Two threads may share one.

    Raises:
        ValueError: A value does not fit; the message names it and what was expected.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        spec: ClearSpec,
        scale: float | None = None,
        reference_tokens: int = 0,
        query_rows: range | None = None,
        chunk_bytes: int | None = None,
        on_chunk: Callable[[], None] | None = None,
        backend: str = "auto",
    ) -> None:
        if chunk_bytes is not None and (not isinstance(chunk_bytes, int) or chunk_bytes < 1):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise ValueError(
                f"chunk_bytes is {quoted(chunk_bytes)}; expected an integer of at least 1, in bytes, or None."
            )
        if not isinstance(spec, ClearSpec):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise ValueError(f"spec is {quoted(spec)}; expected a ClearSpec.")
        self.grid = grid
        self.spec = spec
        self.scale = scale
        self.reference_tokens = reference_tokens
        self.query_rows = query_rows
        self.chunk_bytes = chunk_bytes
        self.on_chunk = _nothing if on_chunk is None else on_chunk
        self.backend = backend
        # The last tensors' shapes, dtypes and devices, and what was found for them. One value, because of threads.
        self._checked: tuple[tuple[Any, ...], SequenceLayout, range, ClearSpec] | None = None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        spatial_weight: Tensor | None = None,
        bias: Tensor | AttentionBias | None = None,
        return_lse: bool = False,
    ) -> Attended:
        """Attention of one block; arguments and errors as of :func:`clear_attention`."""
        like = (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device)
        checked = self._checked
        if checked is None or checked[0] != like:
            checked = self._checked = (like, *self._check(q, k, v))
        _, layout, rows, spec = checked
        if bias is not None:
            bias = bias if isinstance(bias, AttentionBias) else AttentionBias.of(bias, layout, rows)
            bias.check(q, layout, rows, self.spec)
        weight = check_spatial_weight(spatial_weight, self.spec)
        call = AttentionCall(
            q=q,
            k=k,
            v=v,
            layout=layout,
            query_rows=rows,
            spec=spec,
            spatial_weight=weight,
            scale=attention_scale(q.shape[-1]) if self.scale is None else self.scale,
            bias=bias,
            chunk_bytes=self.chunk_bytes,
            on_chunk=self.on_chunk,
            return_lse=return_lse,
            needs_grad=wants_grad(q, k, v, weight),
        )
        return run_backend(self.backend, call)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[SequenceLayout, range, ClearSpec]:
        """Layout of k and v, rows of the queries, and windows with a radius that the grid allows."""
        check_tensors(q, k, v, any_queries=self.query_rows is not None)
        layout = SequenceLayout.of(k.shape[2], self.grid, self.reference_tokens)
        rows = range(layout.grid[0])
        if self.query_rows is not None:
            rows = _check_query_rows(self.query_rows, q, layout)
        return layout, rows, self.spec.within(layout.grid)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, any_queries: bool) -> None:
    """Refuse shapes, dtypes and devices that do not fit; with ``any_queries`` q's tokens are left to another check."""
    if q.ndim != 4:
        raise ValueError(f"q has shape {tuple(q.shape)}; expected (batch, heads, tokens, head size).")
    if any_queries and (k.ndim != 4 or (*k.shape[:2], k.shape[3]) != (*q.shape[:2], q.shape[3])):
        raise ValueError(f"k has shape {tuple(k.shape)}; expected q's batch, heads and head size, {tuple(q.shape)}.")
    of, expected = ("k's", k.shape) if any_queries else ("q's", q.shape)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {of}, {tuple(expected)}.")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; expected q's, {q.dtype} on {q.device}.")
    if not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}; expected a floating-point dtype.")
    if not _SMALLEST_HEAD <= q.shape[-1] <= _LARGEST_HEAD:
        raise ValueError(f"the head size is {q.shape[-1]}; expected {_SMALLEST_HEAD} to {_LARGEST_HEAD}.")


def _check_query_rows(rows: range, q: Tensor, layout: SequenceLayout) -> range:
    height, width = layout.grid
    if not isinstance(rows, range) or rows.step != 1 or not 0 <= rows.start <= rows.stop <= height:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise ValueError(f"query_rows is {quoted(rows)}; expected a range of step 1 inside the grid's {height} rows.")
    expected = layout.length - layout.image + len(rows) * width
    if q.shape[2] != expected:
        raise ValueError(
            f"q has {q.shape[2]} tokens, but text, {len(rows)} rows of {width} image tokens and reference tokens "
            f"are {expected}; check query_rows and grid."
        )
    return rows


def check_spatial_weight(weight: Tensor | None, spec: ClearSpec) -> Tensor | None:
    """The (d, d) weight of a pooling spec, None otherwise."""
    d = spec.down_factor
    if weight is None:
        return mean_weight(d) if spec.pools else None
    if spec.overview:
        raise ValueError(
            f"spatial_weight was given, but the spec ({spec}) has an overview, whose cells are plain means; leave out "
            "one of the two."
        )
    if tuple(weight.shape) not in ((d, d), (1, 1, 1, d, 1, d, 1)):
        raise ValueError(
            f"spatial_weight has shape {tuple(weight.shape)}; expected ({d}, {d}), the down factor of the spec."
        )
    return weight.reshape(d, d) if spec.pools else None


def _nothing() -> None:
    """``on_chunk`` of callers that have none."""
