"""Pictures and masks in any form become one form, or are refused in one sentence."""

from __future__ import annotations

import pytest
import torch

from clear_core.sdedit import as_mask, as_picture, check_finite

MASKS = (torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_a_mask_is_itself_in_every_type_and_place_of_its_channel(dtype):
    for form in (MASKS, MASKS[:, None], MASKS[..., None]):
        out = as_mask(form.to(dtype))
        assert out.dtype == torch.float32 and torch.equal(out, MASKS)
    assert torch.equal(as_mask(MASKS[0].to(dtype)), MASKS[:1])


def test_an_overshoot_of_a_resize_is_left_as_it_is():
    overshoot = MASKS * 1.3 - 0.15
    assert torch.equal(as_mask(overshoot), overshoot)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_a_picture_has_three_channels_of_floats(channels, dtype):
    image = torch.rand(2, 3, 5, channels, generator=torch.Generator().manual_seed(1)).round().to(dtype)
    out = as_picture(image)
    used = [0, 1, 2] if channels > 2 else [0, 0, 0]
    assert out.is_floating_point() and out.numpy().shape == (2, 3, 5, 3)
    assert torch.equal(out, image[..., used].to(out))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_finite_numbers_of_any_type_pass(dtype):
    check_finite(MASKS.to(dtype), "hat")
    with pytest.raises(ValueError, match="hat"):
        check_finite((MASKS * NAN).to(dtype), "hat")


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        (lambda: as_picture(MASKS), ["image", "(2, 3, 5)"]),
        (lambda: as_picture(torch.zeros(1, 0, 4, 3)), ["image", "(1, 0, 4, 3)"]),
        (lambda: as_picture(torch.zeros(1, 4, 4, 3, dtype=torch.uint8)), ["image", "uint8", "255"]),
        (lambda: as_mask(MASKS[0, 0], "cape"), ["cape", "(5,)"]),
        (lambda: as_mask(MASKS[:0]), ["mask", "(0, 3, 5)"]),
        (lambda: as_mask(torch.ones(2, 3, 4, 5)), ["mask", "(2, 3, 4, 5)"]),
        (lambda: as_mask(torch.tensor([[0, 200]], dtype=torch.uint8)), ["mask", "0 to 200"]),
        (lambda: as_mask(-MASKS), ["mask", "-1 to"]),
        (lambda: as_mask(torch.tensor([[0.0, NAN]])), ["mask", "NaN"]),
        (lambda: check_finite(torch.tensor([1.0, -INF]), "hat"), ["hat", "infinite"]),
        (lambda: check_finite(torch.tensor([NAN, 1.0]).half(), "hat"), ["hat", "NaN"]),
    ],
)
def test_refuses_in_one_sentence(refuse, words):
    with pytest.raises(ValueError) as refused:
        refuse()
    sentence = str(refused.value)
    assert all(word in sentence for word in words) and "\n" not in sentence and sentence.endswith(".")
