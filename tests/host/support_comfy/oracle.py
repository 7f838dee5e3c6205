"""The oracle of CLEAR attention inside a stock model: the mask written out pair by pair, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor


def window_mask(text: int, grid: tuple[int, int], references: int, radius: int) -> Tensor:
    """bool (L, L), True where a key is seen, from the method's own sentences."""
    height, width = grid
    places = [(y, x) for y in range(height) for x in range(width)]
    length = text + len(places) + references
    mask = torch.ones(length, length, dtype=torch.bool)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            mask[text + i, text + j] = (y - v) ** 2 + (x - u) ** 2 < radius**2
    return mask


def with_oracle_attention(patcher: Any, mask: Tensor, scale: float | None = None) -> Any:
    """A clone of a stock model whose blocks attend with ``mask`` and ``scale``, in float64."""

    def attend(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        scores = q.double() @ k.double().transpose(-1, -2) * factor
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return (weights @ v.double()).to(q.dtype).transpose(1, 2).flatten(2)

    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attend
    return clone


def with_oracle_windows(
    patcher: Any,
    radius: int,
    scale: Callable[[int], float] | None = None,
    dense_blocks: Container[tuple[str, int]] = (),
) -> Any:
    """A clone of a stock model that attends, at every call, in windows over the latent of that call, in float64.

    Unlike :func:`with_oracle_attention` it follows calls of several sizes (areas, tiles) and text lengths, adds masks
    to the scores, and works beside packs that use the override's slot.

    Args:
        scale: Factor on the query-key products by number of text and image tokens; None is ``1/sqrt(head size)``.
        dense_blocks: ("double" or "single", index) of blocks that keep the attention they have, with this scale.
    """
    import comfy.patcher_extension

    def tokens(latent: Tensor) -> tuple[int, int]:
        return -(-latent.shape[-2] // 2), -(-latent.shape[-1] // 2)

    def wrapper(
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        references = sum(h * w for h, w in map(tokens, extra.get("ref_latents") or ()))
        grid = tokens(x)
        before = transformer_options or {}
        previous = before.get("optimized_attention_override")

        def attend(func: Callable, *args: Any, **kwargs: Any) -> Tensor:
            block = tuple(kwargs["transformer_options"][key] for key in ("block_type", "block_index"))
            q, k, v = (tensor.double() for tensor in args[:3])
            plain = q.shape[-1] ** -0.5
            text = q.shape[2] - grid[0] * grid[1] - references
            factor = plain if scale is None else scale(text + grid[0] * grid[1])
            if block in dense_blocks:
                args = (args[0] * (factor / plain), *args[1:])
                return func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs)
            scores = (q @ k.transpose(-1, -2) * factor).masked_fill(
                ~_cached_window_mask(text, grid, references, radius), float("-inf")
            )
            mask = kwargs.get("mask")
            if mask is not None:  # (B, L, L), as the host makes it of a conditioning's
                scores = scores + mask.double()[:, None]
            return (scores.softmax(dim=-1) @ v).to(args[0].dtype).transpose(1, 2).flatten(2)

        options = {**before, "optimized_attention_override": attend}
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)

    clone = patcher.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "oracle", wrapper)
    return clone


_cached_window_mask = functools.lru_cache(maxsize=32)(window_mask)
