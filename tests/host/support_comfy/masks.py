"""Attention masks as prompts, Redux and packs for regions make them, and the stock model that attends under them.

Each of :data:`MASKS` makes a conditioning, a mask for the blocks or None, and the number of reference tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import graph_inputs
from .graph_inputs import prompt
from .oracle import window_mask
from .sampling import run_node

HIDDEN = -math.inf


def noise(grid: tuple[int, int], batch: int = 1) -> Tensor:
    """A latent of ``grid`` tokens: (B, 16, 2 h, 2 w)."""
    return graph_inputs.noise(2 * grid[0], 2 * grid[1], batch)


def attending(
    patcher: Any,
    text: int,
    grid: tuple[int, int],
    references: int = 0,
    radius: int | None = None,
    scale: float | None = None,
) -> Any:
    """A clone of a stock model whose blocks run ``attention_pytorch`` on their mask with the window written into it.

    Args:
        radius: None for no window.
        scale: None for the stock one.
    """
    from comfy.ldm.modules.attention import attention_pytorch

    length = text + grid[0] * grid[1] + references
    seen = window_mask(text, grid, references, math.inf if radius is None else radius)

    def attend(
        func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        window = torch.zeros(length, length).masked_fill(~seen, HIDDEN)
        if mask is not None:
            mask = mask if mask.ndim != 3 else mask[:, None]
            window = mask & seen if mask.dtype == torch.bool else mask + window
        q = q if scale is None else q * scale * q.shape[-1] ** 0.5
        return attention_pytorch(q, k, v, heads, mask=window, **kwargs)

    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attend
    return clone


def with_block_mask(patcher: Any, mask: Tensor) -> Any:
    """A clone whose blocks get ``mask``, as packs for regional prompts hand it over."""

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"]({**args, "attn_mask": mask})

    clone = patcher.clone()
    for i in range(2):
        clone.set_model_patch_replace(replaced, "dit", "double_block", i)
        clone.set_model_patch_replace(replaced, "dit", "single_block", i)
    return clone


def redux(positive: list, host: Any, strength: float, tokens: int = 4, seed: int = 3) -> list:
    """A prompt with a picture's tokens, by the stock node and the host's own Redux model with random weights."""
    import comfy.sd
    from comfy.ldm.flux.redux import ReduxImageEncoder

    generator = torch.Generator().manual_seed(seed)
    encoder = ReduxImageEncoder(redux_dim=8, txt_in_features=64)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        seen = SimpleNamespace(last_hidden_state=torch.randn(1, tokens, 8, generator=generator))
        return run_node(
            host.stock("StyleModelApply"),
            conditioning=positive,
            style_model=comfy.sd.StyleModel(encoder),
            clip_vision_output=seen,
            strength=strength,
            strength_type="attn_bias",
        )[0]


def random_bias(draw: random.Random, *shape: int) -> Tensor:
    """Random values; a third of the elements are -inf."""
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    return torch.randn(shape, generator=generator).masked_fill(torch.rand(shape, generator=generator) < 0.3, HIDDEN)


def bias_in_the_conditioning(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    length = text + grid[0] * grid[1]
    bias = random_bias(draw, 1, length, length)
    return prompt(text, attention_mask=bias, attention_mask_img_shape=grid), None, 0


def bool_in_the_conditioning(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """The host converts it to floating point and adds it to the scores."""
    length = text + grid[0] * grid[1]
    mask = random_bias(draw, 1, length, length) > HIDDEN
    if draw.random() < 0.5:
        mask[:, text:, text:] = True
    return prompt(text, attention_mask=mask, attention_mask_img_shape=grid), None, 0


def by_image_row(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """Every image row has its own bias on the text; image tokens among themselves have none."""
    length = text + grid[0] * grid[1]
    bias = torch.zeros(1, length, length)
    bias[:, text:, :text] = random_bias(draw, grid[0], text).repeat_interleave(grid[1], dim=0)
    return prompt(text, attention_mask=bias, attention_mask_img_shape=grid), None, 0


def enlarged_by_the_host(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    small = draw.choice([(1, 1), (2, 3), (grid[0], 1)])
    length = text + small[0] * small[1]
    bias = random_bias(draw, 1, length, length).clamp(min=-3.0)
    return prompt(text, attention_mask=bias, attention_mask_img_shape=small), None, 0


def regions(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """bool, given to the blocks: two prompts, each for its part of the image; the parts attend to each other or not."""
    side = torch.arange(grid[0] * grid[1]) % grid[1] < draw.randint(1, grid[1] - 1)
    owner = torch.cat([torch.arange(text) < draw.randint(1, text - 1), side])
    mask = owner[:, None] == owner
    if draw.random() < 0.5:
        mask[text:, text:] = True
    return prompt(text), mask.view(*[1] * draw.randint(0, 2), *mask.shape), 0


def given_to_the_blocks(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """Any shape that the host's attention takes, reference tokens in it or not."""
    references = draw.choice([0, 2 * 3])
    length = text + grid[0] * grid[1] + references
    shape = draw.choice([(length, length), (1, length, length), (1, 2, length, length), (1, 1, 1, length), (1, length)])
    positive = prompt(text, reference_latents=[noise((2, 3))]) if references else prompt(text)
    return positive, random_bias(draw, *shape), references


def reduxs_own(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    # Not 0: the host's interpolation of the mask turns its -inf into NaN.
    strength = draw.choice([0.02, 0.2, 0.7, 3.0])
    return redux(prompt(text), host, strength, draw.randint(1, 9), draw.randrange(100)), None, 0


def reduxs_on_another(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """Redux widens the mask that a prompt has; twice, as people stack it."""
    make = draw.choice([by_image_row, bool_in_the_conditioning])
    return redux(redux(make(draw, text, grid, host)[0], host, 0.5), host, draw.choice([1.0, 0.3])), None, 0


MASKS = [
    bias_in_the_conditioning,
    bool_in_the_conditioning,
    by_image_row,
    enlarged_by_the_host,
    regions,
    given_to_the_blocks,
    reduxs_own,
    reduxs_on_another,
]


def random_mask(seed: int, host: Any) -> tuple[list, Tensor | None, int, tuple[int, int], random.Random]:
    draw = random.Random(seed)
    grid = draw.randint(2, 9), draw.randint(2, 9)
    return *MASKS[seed % len(MASKS)](draw, draw.randint(2, 9), grid, host), grid, draw
