"""Batches, masks and prompts of any form in CLEARUpscale: the host's rule, or one sentence before any work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.upscaling import composite, lanczos, prompt, stock_graph

SIZE = (64, 64)
NAN, INF = float("nan"), float("inf")


def bands(count: int) -> torch.Tensor:
    """(count, *SIZE) masks of 0 and 1, each a band of its own."""
    masks = torch.zeros(count, *SIZE)
    for number in range(count):
        masks[number, :, 16 * number : 16 * number + 16] = 1
    return masks


def prompts(count: int) -> list:
    """A conditioning of a batch of prompts."""
    alone = [prompt(seed)[0] for seed in range(10, 10 + count)]
    pooled = torch.cat([extras["pooled_output"] for _, extras in alone])
    return [[torch.cat([text for text, _ in alone]), {**alone[0][1], "pooled_output": pooled}]]


def masked_prompts(host: Any, mask: torch.Tensor) -> list:
    """Two prompts, the second one under a mask."""
    inputs = {"mask": mask, "strength": 1.0, "set_cond_area": "default"}
    (masked,) = run_node(host.stock("ConditioningSetMask"), conditioning=prompt(3), **inputs)
    return [*prompt(), *masked]


@pytest.fixture
def begun(pack, monkeypatch) -> list[str]:
    """Gets an entry for every stage that begins its work."""
    stage_module = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage")
    entries, original = [], stage_module.enlarge
    monkeypatch.setattr(stage_module, "enlarge", lambda *args: entries.append("enlarge") or original(*args))
    return entries


@pytest.mark.parametrize(("pictures", "masks"), [(1, 3), (3, 2), (2, 2), (3, 1)], ids=str)
def test_masks_go_round_the_pictures_as_in_the_host(host, vae, upscale, tiny_flux, pictures, masks):
    model, image, mask = tiny_flux(), picture(32, 32, batch=pictures), bands(masks)
    out, latent, info = upscale(image, model, mask=mask, steps=2)
    expected, expected_latent = stock_graph(host, vae, image, model, SIZE, mask=mask, steps=2)
    assert torch.equal(latent, expected_latent)
    assert torch.equal(out, composite(host, lanczos(host, image, SIZE), expected, mask))
    assert f"pictures: {pictures}" in info


@pytest.mark.parametrize(("pictures", "texts"), [(1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize(
    "tiles", [{}, {"tile_width": 48, "tile_height": 64, "tile_overlap": 16}], ids=["whole", "tiles"]
)
def test_prompts_go_round_the_pictures_as_in_the_host(host, vae, upscale, tiny_flux, pictures, texts, tiles):
    model, image = tiny_flux(), picture(32, 32, batch=pictures)
    _, latent, _ = upscale(image, model, positive=prompts(texts), steps=1, **tiles)
    repeated = [number % texts for number in range(pictures)]
    (text, extras), *_ = prompts(texts)
    one_each = [[text[repeated], {**extras, "pooled_output": extras["pooled_output"][repeated]}]]
    if tiles:
        expected = upscale(image, model, positive=one_each, steps=1, **tiles)[1]
    else:
        expected = stock_graph(host, vae, image, model, SIZE, positive=one_each, steps=1)[1]
    assert torch.equal(latent, expected)


@pytest.mark.parametrize(("pictures", "masks"), [(1, 3), (3, 2)], ids=str)
def test_masks_of_a_prompt_go_round_the_pictures_too(host, vae, upscale, tiny_flux, pictures, masks):
    """The host itself fails where the pictures are no multiple of the masks."""
    model, image, mask = tiny_flux(), picture(32, 32, batch=pictures), bands(masks)
    _, latent, _ = upscale(image, model, positive=masked_prompts(host, mask), steps=1)
    one_each = masked_prompts(host, mask[[number % masks for number in range(pictures)]])
    assert torch.equal(latent, stock_graph(host, vae, image, model, SIZE, positive=one_each, steps=1)[1])


@pytest.mark.parametrize(("pictures", "latents"), [(1, 3), (3, 2)], ids=str)
def test_reference_latents_go_round_the_pictures_too(host, vae, upscale, tiny_flux, pictures, latents):
    model, image = tiny_flux(), picture(32, 32, batch=pictures)
    latent = torch.randn(latents, 16, 4, 6, generator=torch.Generator().manual_seed(4))
    _, out, _ = upscale(image, model, positive=prompt_with(reference_latents=[latent]), steps=1)
    one_each = prompt_with(reference_latents=[latent[[number % latents for number in range(pictures)]]])
    assert torch.equal(out, stock_graph(host, vae, image, model, SIZE, positive=one_each, steps=1)[1])


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bool": lambda mask: mask.bool(),
    "uint8": lambda mask: mask.to(torch.uint8),
    "half": lambda mask: mask.half(),
    "bfloat16": lambda mask: mask.bfloat16(),
    "double": lambda mask: mask.double(),
    "(h, w)": lambda mask: mask[0],
    "(B, 1, h, w)": lambda mask: mask[:, None],
    "(B, h, w, 1)": lambda mask: mask[..., None],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_in_another_form_is_the_same_mask(host, upscale, tiny_flux, form):
    """Smaller than the picture, so that it is resized; for the picture and for a prompt."""
    model, image = tiny_flux(), picture(32, 32)
    mask = torch.nn.functional.max_pool2d(bands(1), 3, ceil_mode=True)
    other = FORMS[form](mask)
    out, latent, _ = upscale(image, model, mask=other, positive=masked_prompts(host, other), steps=1)
    expected, expected_latent, _ = upscale(image, model, mask=mask, positive=masked_prompts(host, mask), steps=1)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)


@pytest.mark.parametrize("upscale_by", [1.0, 2.0], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 4], ids=str)
def test_a_grey_picture_is_its_colours(upscale, tiny_flux, channels, upscale_by):
    grey = picture(32, 32)[..., :1]
    colours = grey.repeat(1, 1, 1, 3)
    alpha = 0.5 * torch.ones_like(grey)
    image = {1: grey, 2: torch.cat([grey, alpha], -1), 4: torch.cat([colours, alpha], -1)}[channels]
    out, latent, _ = upscale(image, tiny_flux(), upscale_by=upscale_by, steps=1)
    expected, expected_latent, _ = upscale(colours, tiny_flux(), upscale_by=upscale_by, steps=1)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_picture_of_another_precision_is_nearly_the_same(upscale, tiny_flux, dtype):
    image = picture(32, 32)
    out, _, _ = upscale(image.to(dtype), tiny_flux(), steps=1)
    assert (out.float() - upscale(image, tiny_flux(), steps=1)[0]).abs().max() < 0.05


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[7] = value
    return tensor


def prompt_with(**extras: Any) -> list:
    (text, own), *_ = prompt()
    return [[extras.pop("text", text), {**own, **extras}]]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no picture": ({"image": picture(32, 32)[:0]}, ["image", "(0, 32, 32, 3)"]),
    "no channel": ({"image": picture(32, 32)[..., :0]}, ["image", "(1, 32, 32, 0)"]),
    "a picture of three dimensions": ({"image": picture(32, 32)[0]}, ["image", "(32, 32, 3)"]),
    "a picture of bytes": ({"image": (picture(32, 32) * 255).byte()}, ["image", "uint8", "255"]),
    "NaN in a picture": ({"image": with_value(picture(32, 32), NAN)}, ["image", "NaN"]),
    "infinite in a picture": ({"image": with_value(picture(32, 32), INF)}, ["image", "infinite"]),
    "no mask": ({"mask": bands(1)[:0]}, ["mask", "(0, 64, 64)"]),
    "a mask of one dimension": ({"mask": bands(1)[0, 0]}, ["mask", "(64,)"]),
    "a mask of three colours": ({"mask": bands(3)[None]}, ["mask", "(1, 3, 64, 64)"]),
    "a mask to 255": ({"mask": 255 * bands(1)}, ["mask", "255"]),
    "a mask of bytes": ({"mask": (255 * bands(1)).byte()}, ["mask", "255"]),
    "NaN in a mask": ({"mask": with_value(bands(1), NAN)}, ["mask", "NaN"]),
    "no prompt": ({"positive": []}, ["positive", "prompt"]),
    "no negative prompt": ({"negative": [], "cfg": 2.0}, ["cfg is 2", "negative"]),
    "an empty batch of prompts": ({"positive": prompt_with(text=torch.zeros(0, 7, 64))}, ["positive", "(0, 7, 64)"]),
    "an empty pooled prompt": ({"positive": prompt_with(pooled_output=torch.zeros(0, 32))}, ["positive", "pooled"]),
    "an empty reference": ({"positive": prompt_with(reference_latents=[torch.zeros(0, 16, 8, 8)])}, ["reference"]),
    "NaN in a prompt": ({"positive": prompt_with(text=torch.full((1, 7, 64), NAN))}, ["positive", "NaN"]),
    "NaN in a negative prompt": ({"negative": prompt_with(pooled_output=torch.full((1, 32), NAN))}, ["negative"]),
    "NaN in a prompt's mask": ({"positive": prompt_with(mask=with_value(bands(1), NAN))}, ["positive", "mask", "NaN"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_ends_in_one_sentence_before_any_work(upscale, tiny_flux, begun, case):
    inputs, words = REFUSED[case]
    with pytest.raises(ValueError) as refused:
        upscale(**{"image": picture(32, 32), "model": tiny_flux(), "steps": 1, **inputs})
    sentence = str(refused.value)
    assert all(word in sentence for word in words) and "\n" not in sentence and sentence.endswith(".")
    assert begun == []


def test_what_hides_tokens_is_no_bad_number(upscale, tiny_flux, begun):
    """A Redux of strength 0 hides its tokens by minus infinity."""
    tokens = 7 + 4
    hidden = torch.zeros(1, tokens, tokens)
    hidden[..., 3] = -INF
    upscale(picture(32, 32), tiny_flux(), positive=prompt_with(attention_mask=hidden), upscale_by=1.0, steps=1)
    assert begun == ["enlarge"]
