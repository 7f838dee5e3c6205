"""Attention masks in a real ComfyUI: each goes through the windows, none is dropped.

What is expected is the stock model whose attention gets the mask with the window written into it: the host's
``attention_pytorch``, which it uses on cards. (Without one it uses another, to which a bool mask is a number as well.)
"""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.oracle import window_mask
from tests.host.support_comfy.sampling import conditioning, relative_error, run_node

SIGMA = 0.6
HIDDEN = -math.inf


def noise(grid: tuple[int, int], batch: int = 1) -> Tensor:
    """A latent of ``grid`` tokens: (B, 16, 2 h, 2 w)."""
    return torch.randn(batch, 16, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(1))


def prompt(text: int, **extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


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


# ---- 50 random masks: each of these makes (a conditioning, a mask for the blocks or None, reference tokens) ----


def random_bias(draw: random.Random, *shape: int) -> Tensor:
    """Numbers, a third of them -inf."""
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    return torch.randn(shape, generator=generator).masked_fill(torch.rand(shape, generator=generator) < 0.3, HIDDEN)


def bias_in_the_conditioning(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    length = text + grid[0] * grid[1]
    bias = random_bias(draw, 1, length, length)
    return prompt(text, attention_mask=bias, attention_mask_img_shape=grid), None, 0


def bool_in_the_conditioning(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """The host makes numbers of it and adds them."""
    length = text + grid[0] * grid[1]
    mask = random_bias(draw, 1, length, length) > HIDDEN
    if draw.random() < 0.5:
        mask[:, text:, text:] = True
    return prompt(text, attention_mask=mask, attention_mask_img_shape=grid), None, 0


def by_image_row(draw: random.Random, text: int, grid: tuple[int, int], host: Any) -> tuple:
    """Every row of the picture weighs the words in its own way; the picture itself is left alone."""
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
    """Two prompts, each for its own part of the picture; the parts see each other or not. bool, given to the blocks."""
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
    # Not 0: the host's own enlargement of the mask makes NaN of its -inf.
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


@pytest.mark.parametrize("seed", range(50), ids=lambda seed: f"{MASKS[seed % len(MASKS)].__name__}-{seed}")
def test_none_of_50_masks_is_dropped(host, tiny_flux, clear_node, predict, seed):
    positive, mask, references, grid, draw = random_mask(seed, host)
    radius, backend = draw.choice([1, 2, 3, 5]), draw.choice(["auto", "gather", "dense"])
    x, text = noise(grid, draw.choice([1, 2])), positive[0][0].shape[1]
    model = tiny_flux()
    masked = model if mask is None else with_block_mask(model, mask)
    expected = predict(attending(masked, text, grid, references, radius), x, SIGMA, positive)
    patched = clear_node(masked, radius=radius, backend=backend)
    with Recorder() as log:
        assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert [line for line in log.messages() if "CLEAR" in line] == []
    # Without the mask, or without the window, it is another picture, or the comparison says nothing.
    bare = [
        [context, {name: value for name, value in extra.items() if name != "attention_mask"}]
        for context, extra in positive
    ]
    assert relative_error(predict(clear_node(model, radius=radius), x, SIGMA, bare), expected) > 1e-4
    if math.dist((0, 0), (grid[0] - 1, grid[1] - 1)) >= radius:
        assert relative_error(predict(masked, x, SIGMA, positive), expected) > 1e-4


@pytest.mark.parametrize("make", MASKS, ids=lambda make: make.__name__)
def test_a_radius_past_the_grid_is_the_stock_model_with_the_same_mask(host, tiny_flux, clear_node, predict, make):
    model, grid = tiny_flux(), (7, 9)
    positive, mask, references = make(random.Random(4), 6, grid, host)
    masked = model if mask is None else with_block_mask(model, mask)
    text = positive[0][0].shape[1]
    stock = attending(masked, text, grid, references) if mask is not None and mask.dtype == torch.bool else masked
    expected = predict(stock, noise(grid), SIGMA, positive)
    for backend in ("auto", "gather"):
        patched = clear_node(masked, radius=50, backend=backend)
        assert relative_error(predict(patched, noise(grid), SIGMA, positive), expected) < 1e-5


@pytest.mark.parametrize("make", [by_image_row, regions], ids=lambda make: make.__name__)
def test_half_precision_is_the_stock_models(host, tiny_flux, clear_node, predict, make):
    model, grid = tiny_flux(dtype=torch.bfloat16), (7, 9)
    positive, mask, *_ = make(random.Random(4), 6, grid, host)
    masked = model if mask is None else with_block_mask(model, mask)
    expected = predict(attending(masked, 6, grid, radius=3), noise(grid), SIGMA, positive)
    assert relative_error(predict(clear_node(masked, radius=3), noise(grid), SIGMA, positive), expected) < 2e-2
    assert relative_error(predict(clear_node(model, radius=3), noise(grid), SIGMA, prompt(6)), expected) > 5e-2


def test_the_scale_asked_for_goes_with_the_mask(host, tiny_flux, clear_node, predict):
    model, text, grid = tiny_flux(), 7, (6, 7)
    positive, *_ = bias_in_the_conditioning(random.Random(1), text, grid, host)
    scale = math.sqrt(math.log(text + 42, 64 * 64 + 512) / 128)
    expected = predict(attending(model, text, grid, radius=3, scale=scale), noise(grid), SIGMA, positive)
    patched = clear_node(model, radius=3, proportional_attention="on")
    assert relative_error(predict(patched, noise(grid), SIGMA, positive), expected) < 1e-5


@pytest.mark.parametrize("down_factor", [1, 2, 3])
def test_a_word_hidden_from_everyone_is_a_prompt_without_it(tiny_flux, clear_node, predict, down_factor):
    """Pooled keys know nothing of the mask on the text."""
    grid, text, word = (7, 9), 6, 2
    length = text + 63
    bias = torch.zeros(1, length, length)
    bias[..., word] = HIDDEN
    positive = prompt(text, attention_mask=bias, attention_mask_img_shape=grid)
    without = prompt(text)
    without[0][0] = torch.cat([without[0][0][:, :word], without[0][0][:, word + 1 :]], dim=1)
    patched = clear_node(tiny_flux(), radius=3, down_factor=down_factor)
    expected = predict(patched, noise(grid), SIGMA, without)
    assert relative_error(predict(patched, noise(grid), SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(patched, noise(grid), SIGMA, prompt(text)), expected) > 1e-3


@pytest.mark.parametrize(
    "hatch",
    [dict(dense_blocks="0-3"), dict(min_tokens=100), dict(start_percent=0.99)],
    ids=lambda hatch: next(iter(hatch)),
)
def test_where_the_window_is_switched_off_the_mask_is_the_stock_models(host, tiny_flux, clear_node, predict, hatch):
    model, grid = tiny_flux(), (6, 7)
    positive, *_ = bias_in_the_conditioning(random.Random(1), 7, grid, host)
    assert torch.equal(
        predict(clear_node(model, radius=3, **hatch), noise(grid), SIGMA, positive),
        predict(model, noise(grid), SIGMA, positive),
    )


def test_a_mask_that_fits_no_block_is_the_hosts_to_refuse(tiny_flux, clear_node, predict):
    patched = with_block_mask(clear_node(tiny_flux(), radius=3), torch.zeros(1, 1, 5, 5))
    with Recorder() as log, pytest.raises(RuntimeError):
        predict(patched, noise((6, 7)), SIGMA, prompt(7))
    (line,) = [line for line in log.messages() if "CLEAR" in line]
    assert "mask of shape (1, 1, 5, 5)" in line and "1 x 2 x 49 tokens" in line


# ---- what is refused, and how often a mask is looked at ----


@pytest.fixture
def masks_module(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.host.model.masks")


def test_a_mask_between_image_tokens_past_the_limit_is_refused_in_words(
    host, tiny_flux, clear_node, predict, masks_module, monkeypatch
):
    model, grid = clear_node(tiny_flux(), radius=3), (6, 7)
    full, *_ = bias_in_the_conditioning(random.Random(1), 7, grid, host)
    rows, *_ = by_image_row(random.Random(1), 7, grid, host)
    size = 49 * 49 * 4
    monkeypatch.setattr(masks_module, "MOST_BYTES", size)
    allowed = predict(model, noise(grid), SIGMA, full)
    assert allowed.isfinite().all()
    monkeypatch.setattr(masks_module, "MOST_BYTES", size - 1)
    with pytest.raises(ValueError, match=r"49 tokens \(112 x 96 px\).*smaller or run it in tiles"):
        predict(model, noise(grid), SIGMA, full)
    assert predict(model, noise(grid), SIGMA, rows).isfinite().all()


def test_a_4k_mask_is_within_the_limit_and_an_8k_one_is_not(masks_module):
    for side, fits in ((4096, True), (8192, False)):
        tokens = (side // 16) ** 2 + 512
        assert (tokens**2 * 2 <= masks_module.MOST_BYTES) == fits


def test_pooling_refuses_a_mask_between_image_tokens(host, tiny_flux, clear_node, predict):
    grid = (6, 7)
    positive, *_ = bias_in_the_conditioning(random.Random(1), 7, grid, host)
    with pytest.raises(ValueError, match="use down_factor 1"):
        predict(clear_node(tiny_flux(), radius=3, down_factor=2), noise(grid), SIGMA, positive)


def test_a_mask_is_looked_through_once_a_call(host, tiny_flux, clear_node, predict, masks_module, monkeypatch):
    looked: list[Any] = []
    original = masks_module.AttentionBias.of

    def counted(bias: Tensor, layout: Any) -> Any:
        looked.append(bias)
        return original(bias, layout)

    monkeypatch.setattr(masks_module.AttentionBias, "of", counted)
    patched, grid = clear_node(tiny_flux(), radius=3), (6, 7)
    for times in (1, 2):
        predict(patched, noise(grid), SIGMA, by_image_row(random.Random(1), 7, grid, host)[0])
        assert len(looked) == times


def test_another_mask_in_the_next_block_is_not_taken_for_the_first(tiny_flux, clear_node, predict):
    grid, length = (6, 7), 49
    masks = [random_bias(random.Random(seed), length, length) for seed in range(4)]

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        options = args["transformer_options"]
        number = 2 * (options["block_type"] == "single") + options["block_index"]
        return extra["original_block"]({**args, "attn_mask": masks[number]})

    model = tiny_flux()
    for i in range(2):
        model.set_model_patch_replace(replaced, "dit", "double_block", i)
        model.set_model_patch_replace(replaced, "dit", "single_block", i)
    expected = predict(attending(model, 7, grid, radius=3), noise(grid), SIGMA, prompt(7))
    assert relative_error(predict(clear_node(model, radius=3), noise(grid), SIGMA, prompt(7)), expected) < 1e-5
