"""``clear_attention_strip``: each rank's rows of attention to the whole picture (patch-parallel inference)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ..attention import check_backend
from ..attention.api import check_spatial_weight, check_tensors, untraced
from ..attention.call import wants_grad
from ..layout import SequenceLayout
from ..scale import attention_scale
from ..spec import ClearSpec
from ..wording import quoted
from .border import send_border
from .call import StripCall
from .image_rows import ImageRows, send_pooled
from .peers import Peers
from .shared_rows import SharedRows
from .strips import split_rows


@untraced
def clear_attention_strip(  # noqa: PLR0913 - the one public call; everything behind it takes a StripCall
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    peers: Peers,
    grid: tuple[int, int],
    spec: ClearSpec,
    spatial_weight: Tensor | None = None,
    scale: float | None = None,
    reference_tokens: int = 0,
    text: Literal["exact", "average"] = "exact",
    backend: str = "auto",
    on_chunk: Callable[[], None] | None = None,
) -> Tensor:
    """:func:`.clear_attention` of the whole picture, of which each rank holds and gets a strip (arXiv 2412.16112).

    All ranks call it with the same arguments but their own rows; text and reference tokens are the same on all. Keys
    and values of the rows within ``radius - 1`` of a strip travel while its interior is computed. Text and reference
    queries come out with the same bits on every rank. With a radius of ``sum(grid)`` it is dense attention. An error
    on one rank ends the wait of the others; after that ``peers`` is used up.

    Args:
        q, k, v: (B, heads, T + own rows * w + R, D): text, the own rows, reference tokens; norm and RoPE applied. The
            own rows are ``split_rows(grid[0], peers.size, multiple=spec.down_factor)[peers.rank]``; there may be none.
        peers: The ranks, as this one sees them.
        grid: (h, w) of the whole image in tokens. A picture that is wider than high sends less if it is
            :func:`.transposed`.
        spec: Window radius and down factor.
        spatial_weight, scale, backend: As of :func:`.clear_attention`.
        reference_tokens: R.
        text: "exact" for the whole picture's result, or "average" for the paper's Eq. 7, which is another function:
            the text and reference rows are the mean over the ranks of attention to text, references and one strip. A
            rank without rows counts too.
        on_chunk: Called after each chunk. An exception raised in it ends all ranks.

    Returns:
        As q in shape and dtype: the own part of the whole picture's result. It has no gradient. Windows and the keys
        that every query sees are rounded to the dtype apart; in float32 the result is within 2e-6 of the largest
        element.

    Raises:
        ValueError: A value does not fit; the message names it and what was expected.
        PeersError: Another rank has failed, has ended, or has not answered in time.
    """
    try:
        call = _checked(
            q, k, v, peers, grid, spec, spatial_weight, scale, reference_tokens, text, backend, on_chunk or _nothing
        )
        return _attend(call, average=text == "average")
    except BaseException as error:
        peers.abort(error)
        raise


def _attend(call: StripCall, average: bool) -> Tensor:
    # All ranks exchange in this order; what is waited for was sent before something was computed.
    border = send_border(call)
    pooled = send_pooled(call)
    shared = SharedRows(call, average) if call.shared else None
    batch, heads, length, head_dim = call.q.shape
    # Laid out token by token, so that the model's (B, L, heads * D) is a view of it.
    out = call.q.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    image = ImageRows(call, out[:, :, call.image])
    image.interior()
    if shared is not None:
        shared.join()
    image.border(border)
    image.seen_by_all(pooled)
    if shared is not None:
        first, stop = call.image.start, call.image.stop
        rows = shared.wait()
        out[:, :, :first], out[:, :, stop:] = rows[:, :, :first], rows[:, :, first:]
    return out


def _checked(  # noqa: PLR0913 - the arguments of the public call
    q: Tensor,
    k: Tensor,
    v: Tensor,
    peers: Peers,
    grid: tuple[int, int],
    spec: ClearSpec,
    spatial_weight: Tensor | None,
    scale: float | None,
    reference_tokens: int,
    text: str,
    backend: str,
    on_chunk: Callable[[], None],
) -> StripCall:
    """The call; refuses what does not fit."""
    if not isinstance(spec, ClearSpec):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise ValueError(f"spec is {quoted(spec)}; expected a ClearSpec.")
    if text not in ("exact", "average"):
        raise ValueError(f"text is {quoted(text)}; expected 'exact' or 'average'.")
    check_backend(backend)
    check_tensors(q, k, v, any_queries=False)
    weight = check_spatial_weight(spatial_weight, spec)
    if wants_grad(q, k, v, weight):
        raise ValueError("clear_attention_strip has no gradient; call it under torch.no_grad().")
    # Grid and references alone: the number of tokens is each rank's own.
    SequenceLayout.of(sys.maxsize, grid, reference_tokens)
    strips = split_rows(grid[0], peers.size, multiple=spec.down_factor)
    own = strips[peers.rank]
    least = len(own) * grid[1] + reference_tokens
    if q.shape[2] < least:
        raise ValueError(
            f"q has {q.shape[2]} tokens, but rank {peers.rank} of {peers.size} holds {len(own)} of {grid[0]} rows of "
            f"{grid[1]} tokens, and {reference_tokens} reference tokens; these are {least}."
        )
    return StripCall(
        q=q,
        k=k,
        v=v,
        grid=grid,
        strips=strips,
        spec=spec.within(grid),
        spatial_weight=weight,
        scale=attention_scale(q.shape[-1]) if scale is None else scale,
        reference=reference_tokens,
        peers=peers,
        backend=backend,
        on_chunk=on_chunk,
    )


def _nothing() -> None:
    """``on_chunk`` of callers that have none."""
