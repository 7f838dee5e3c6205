"""The oracle of a family's attention in the host's own order of tokens.

It knows nothing of the pack: hooks on the host's modules tell it which attention is the image's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .families import TinyFamily


@functools.lru_cache(maxsize=64)
def circles(grid: tuple[int, int], before: int, length: int, radius: int) -> Tensor:
    """bool (length, length), True where a key is seen: the method's own sentences, pair by pair."""
    height, width = grid
    seen = torch.ones(length, length, dtype=torch.bool)
    for i in range(height * width):
        for j in range(height * width):
            across, down = i % width - j % width, i // width - j // width
            seen[before + i, before + j] = across**2 + down**2 < radius**2
    return seen


def with_overview(
    k: Tensor, v: Tensor, grid: tuple[int, int], before: int, seen: Tensor, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values with the mean of each cell appended, and (length, cells), what is added to the cells' scores.

    Args:
        k, v: (B, heads, length, D).
        seen: bool (length, length).
        side: Of the cells in tokens.
    """
    height, width = grid
    tokens = torch.arange(before, before + height * width).view(height, width)
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    cells = [tokens[top : top + side, left : left + side].flatten() for top, left in corners]
    outside = torch.stack([(~seen[:, cell]).sum(dim=1) for cell in cells], dim=1).double()
    outside[:before] = outside[before + height * width :] = 0
    keys, values = (torch.cat([one, *(one[:, :, cell].mean(2, True) for cell in cells)], dim=2) for one in (k, v))
    return keys, values, outside.log()


@contextmanager
def oracle(
    family: TinyFamily,
    patcher: Any,
    x: Tensor,
    radius: int,
    references: int = 0,
    dense: tuple[int, ...] = (),
    scale: float = 1.0,
    cells: int = 1,
) -> Iterator[Any]:
    """A clone of a stock model that attends in circles, in float64, while the context lasts.

    Args:
        x: The latent of all calls.
        references: Reference tokens.
        dense: Blocks that attend densely, by depth.
        scale: Factor on the products of the image's self-attention.
        cells: Side in tokens of the cells of an overview; 1 for none.
    """
    inside: list[int] = []
    grid, modules = family.grid_of(x), family.modules(patcher.model.diffusion_model)

    def attend(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
        if not inside:
            return func(q, k, v, heads, mask=mask, **kwargs)
        if not kwargs.get("skip_reshape"):
            q, k, v = (each.reshape(len(q), -1, heads, q.shape[-1] // heads).transpose(1, 2) for each in (q, k, v))
        length, image, dtype = q.shape[2], grid[0] * grid[1], q.dtype
        before = 0 if length == image else family.before(length, image, references)
        q, k, v = q.double(), k.double(), v.double()
        seen = circles(grid, before, length, radius)
        windowed, added = inside[-1] not in dense, torch.zeros(length, 0, dtype=torch.double)
        if windowed and cells > 1:
            k, v, added = with_overview(k, v, grid, before, seen, cells)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 * scale
        of_tokens = scores[..., :length]
        if mask is not None:
            of_tokens = of_tokens + (mask[:, None] if mask.ndim == 3 else mask).double()
        if windowed:
            of_tokens = of_tokens.masked_fill(~seen, float("-inf"))
        scores = torch.cat((of_tokens, scores[..., length:] + added), dim=-1)
        return (scores.softmax(dim=-1) @ v).to(dtype).transpose(1, 2).flatten(2)

    handles = []
    for index, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(lambda *_, index=index: inside.append(index)))
        handles.append(module.register_forward_hook(lambda *_: inside.clear()))
    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attend
    try:
        yield clone
    finally:
        for handle in handles:
            handle.remove()


def denoised(patcher: Any, x: Tensor, positive: list, negative: list | None = None, sigma: float = 0.6) -> Tensor:
    """What a model makes of a latent in one call of a sampler; with a negative prompt at cfg 3."""
    import comfy.samplers

    class OneCall(comfy.samplers.Sampler):
        def sample(
            self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *_: Any, **__: Any
        ):
            self.out = model_wrap(noise, sigmas[:1].expand(noise.shape[0]), **extra_args)
            return self.out

    one_call, guider = OneCall(), comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(1.0 if negative is None else 3.0)
    with torch.inference_mode():
        guider.sample(x, torch.zeros_like(x), one_call, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    return one_call.out
