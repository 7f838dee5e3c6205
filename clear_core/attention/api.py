"""``clear_attention``: checks its arguments once, for every backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..scale import attention_scale
from ..spec import ClearSpec
from .bias import AttentionBias
from .choose import BACKENDS, run_backend
from .pool import mean_weight

_SMALLEST_HEAD, _LARGEST_HEAD = 16, 128


@torch.compiler.disable
def clear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int],
    spec: ClearSpec,
    spatial_weight: Tensor | None = None,
    scale: float | None = None,
    reference_tokens: int = 0,
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
            None pools by the mean. Not used when ``spec.down_factor`` is 1.
        scale: Factor on the query-key products; None is ``1/sqrt(D)``.
        reference_tokens: Tokens at the end that every query sees and that see every text, image and reference
            token (no pooled ones).
        bias: Attention mask over the text columns, (B|1, heads|1, L|1, T), or over all, (B|1, heads|1, L|1, L): bool,
            True where a key is seen, or float, added to the scaled scores of the keys that the window lets through.
            Pooled keys stand for image keys: a row's number for all image keys is theirs too, and a bias that
            differs between image keys is refused with pooling. A query that sees no key at all gets zeros (and a
            log-sum-exp of -inf), as from ``scaled_dot_product_attention``. It gets no gradient. A full one is looked
            through once per call; an :class:`.AttentionBias` has been. "flex" and "triton" leave it to "gather".
        chunk_bytes: Bytes that one chunk of work may take besides input and output, 1 or more; None decides by the
            free memory. A single tile of queries is always worked on whole.
        on_chunk: Called after each chunk. What it raises ends the attention, as an interrupt does.
        return_lse: Return the log-sum-exp of the scores as well. It has no gradient.
        backend: One of :data:`BACKENDS`; "auto" takes the fastest that is known to be right here.

    Returns:
        (B, heads, L, D) in q's dtype; with ``return_lse`` also (B, heads, L) float32, the natural logarithm of each
        query's softmax denominator.

    Not traced by ``torch.compile``: a compiled model calls it as it is, with the window of each call.

    Raises:
        ValueError: A value does not fit; the message names it and what was expected.
    """
    if chunk_bytes is not None and (not isinstance(chunk_bytes, int) or chunk_bytes < 1):
        raise ValueError(f"chunk_bytes is {chunk_bytes!r}; expected a number of bytes of at least 1, or None.")
    layout = _check_tensors(q, k, v, grid, spec, reference_tokens)
    weight = _check_spatial_weight(spatial_weight, spec)
    if bias is not None:
        bias = bias if isinstance(bias, AttentionBias) else AttentionBias.of(bias, layout)
        bias.check(q, layout, spec)
    if scale is None:
        scale = attention_scale(q.shape[-1])
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    return run_backend(
        backend,
        q,
        k,
        v,
        layout=layout,
        spec=spec.within(layout.grid),
        spatial_weight=weight,
        scale=scale,
        bias=bias,
        chunk_bytes=chunk_bytes,
        on_chunk=on_chunk,
        return_lse=return_lse,
    )


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], spec: ClearSpec, reference_tokens: int
) -> SequenceLayout:
    if not isinstance(spec, ClearSpec):
        raise ValueError(f"spec is {spec!r}; expected a ClearSpec.")
    if q.ndim != 4:
        raise ValueError(f"q has shape {tuple(q.shape)}; expected (batch, heads, tokens, head size).")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected q's, {tuple(q.shape)}.")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; expected q's, {q.dtype} on {q.device}.")
    if not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}; expected a floating-point dtype.")
    if not _SMALLEST_HEAD <= q.shape[-1] <= _LARGEST_HEAD:
        raise ValueError(f"the head size is {q.shape[-1]}; expected {_SMALLEST_HEAD} to {_LARGEST_HEAD}.")
    return SequenceLayout.of(q.shape[2], grid, reference_tokens)


def _check_spatial_weight(weight: Tensor | None, spec: ClearSpec) -> Tensor | None:
    """The (d, d) weight of a pooling spec, None otherwise."""
    d = spec.down_factor
    if weight is None:
        return mean_weight(d) if spec.pools else None
    if tuple(weight.shape) not in ((d, d), (1, 1, 1, d, 1, d, 1)):
        raise ValueError(
            f"spatial_weight has shape {tuple(weight.shape)}; expected ({d}, {d}), the down factor of the spec."
        )
    return weight.reshape(d, d) if spec.pools else None
