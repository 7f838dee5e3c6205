"""Attention masks in a real ComfyUI: each goes through the windows, none is dropped.

Expected is the stock model under the mask with the window written into it, in the host's ``attention_pytorch``: the
attention that it uses on GPUs. (On a CPU it uses another, which takes a bool mask as 0 and 1.)
"""

from __future__ import annotations

import importlib
import math
import random
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.masks import (
    HIDDEN,
    MASKS,
    attending,
    bias_in_the_conditioning,
    by_image_row,
    noise,
    prompt,
    random_bias,
    random_mask,
    regions,
    with_block_mask,
)
from tests.host.support_comfy.sampling import relative_error

SIGMA = 0.6


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
    # The mask and the window must both change the result, or the comparison proves nothing.
    bare = [
        [context, {name: value for name, value in extra.items() if name != "attention_mask"}]
        for context, extra in positive
    ]
    assert relative_error(predict(clear_node(model, radius=radius), x, SIGMA, bare), expected) > 1e-4
    if math.dist((0, 0), (grid[0] - 1, grid[1] - 1)) >= radius:
        assert relative_error(predict(masked, x, SIGMA, positive), expected) > 1e-4


@pytest.mark.parametrize("make", MASKS, ids=lambda make: make.__name__)
def test_a_radius_past_the_grid_is_the_stock_model_with_the_same_mask(host, tiny_flux, clear_node, predict, make):
    """A window that covers the picture is inactive: the host's attention runs, with its own way to take a mask."""
    model, grid = tiny_flux(), (7, 9)
    positive, mask, _ = make(random.Random(4), 6, grid, host)
    masked = model if mask is None else with_block_mask(model, mask)
    expected = predict(masked, noise(grid), SIGMA, positive)
    for backend in ("auto", "gather"):
        patched = clear_node(masked, radius=50, backend=backend)
        assert torch.equal(predict(patched, noise(grid), SIGMA, positive), expected)


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
    """Pooled keys are independent of the mask on the text."""
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
    [{"dense_blocks": "0-3"}, {"min_tokens": 100}, {"start_percent": 0.99}],
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


def test_pooling_refuses_a_mask_between_image_tokens_and_an_overview_takes_it(
    host, pack, host_part, tiny_flux, clear_node, predict
):
    grid, model = (6, 7), tiny_flux()
    settings = importlib.import_module(f"{pack.__name__}.clear_core.settings")
    positive, *_ = bias_in_the_conditioning(random.Random(1), 7, grid, host)
    pooled = host_part("model.apply").apply_clear(model, settings.ClearSettings(settings.ClearSpec(3, 2)))
    with pytest.raises(ValueError, match="use down_factor 1"):
        predict(pooled, noise(grid), SIGMA, positive)
    hybrids = [clear_node(model, radius=3, down_factor=2, backend=backend) for backend in ("gather", "dense")]
    gathered, written = (predict(each, noise(grid), SIGMA, positive) for each in hybrids)
    assert relative_error(gathered, written) < 1e-5
    assert relative_error(predict(clear_node(model, radius=3), noise(grid), SIGMA, positive), written) > 1e-4


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
