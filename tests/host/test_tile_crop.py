"""What lies over the picture is cropped with a tile, wherever a condition or a ControlNet holds it."""

from __future__ import annotations

import importlib
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt

SIGMA = 0.6
GRID, TILE = (10, 22), (6, 9)
FRAME = (20, 44)


@pytest.fixture(scope="module")
def part(pack):
    """``part(name)`` is a module of nodes/host/crop."""
    return lambda name: importlib.import_module(f"{pack.__name__}.nodes.host.crop.{name}")


@pytest.fixture
def pointwise(tiny_flux):
    """A model that adds what its ControlNet says, place by place."""

    def answer(executor: Any, x: torch.Tensor, t: Any, concat: Any, text: Any, control: Any = None, *_: Any, **__: Any):
        return x * 0.5 + (control["input"][0] if control else 0)

    model = tiny_flux(depth=1, depth_single_blocks=1)
    model.add_wrapper_with_key("apply_model", "pointwise", answer)
    return model


def over_picture(height: int, width: int, channels: int | None = None) -> torch.Tensor:
    """Smooth, so that it can be compared at any size; only the left half is not 0."""
    rows, columns = torch.linspace(0.2, 1, height)[:, None], torch.linspace(1, -1, width).clamp(min=0)
    plane = (rows * columns)[None]
    return plane if channels is None else plane[None].repeat(1, channels, 1, 1)


class Keyframe:
    """As Advanced-ControlNet's."""

    def __init__(self, mask: torch.Tensor | None, weights: Any = None) -> None:
        self.start_percent, self.mask_hint_orig, self.control_weights = 0.0, mask, weights


FORMS = {
    "mask in pixels": lambda: {"mask": over_picture(160, 352)},
    "mask in latents": lambda: {"mask": over_picture(*FRAME)},
    "mask in tokens": lambda: {"mask": over_picture(*GRID)},
    "mask with a channel": lambda: {"mask": over_picture(160, 352, 1)},
    "mask without a batch": lambda: {"mask": over_picture(160, 352)[0]},
    "mask of an unpadded picture": lambda: {"mask": over_picture(155, 350)},
    "mask of other proportions": lambda: {"mask": over_picture(64, 64)},
    "bool": lambda: {"mask": over_picture(160, 352) > 0},
    "bytes": lambda: {"mask": (over_picture(160, 352) * 255).byte()},
    "bytes of other proportions": lambda: {"mask": (over_picture(64, 64) * 255).byte()},
    "half": lambda: {"mask": over_picture(160, 352).half()},
    "picture": lambda: {"reference": over_picture(160, 352, 3) * 4 - 2},
    "argument": lambda: {"extra_args": {"region": over_picture(160, 352)}},
    "keyframes": lambda: {"keyframes": SimpleNamespace(keyframes=[Keyframe(None), Keyframe(over_picture(160, 352))])},
    "weights of a keyframe": lambda: {
        "keyframes": SimpleNamespace(
            keyframes=(Keyframe(None, SimpleNamespace(weight_mask=over_picture(160, 352), weights_input=[1.0] * 12)),)
        )
    },
}


def planes(value: Any) -> list[torch.Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if items is None:
        items = vars(value).values() if hasattr(value, "__dict__") and not callable(value) else ()
    return [plane for item in items for plane in planes(item)]


def shown(**held: Any) -> Any:
    """A ControlNet whose answer is the sum of what it holds, brought to the size of the latent."""
    from comfy.controlnet import ControlBase

    class Shown(ControlBase):
        def get_control(self, x: torch.Tensor, *args: Any) -> Any:
            total = torch.zeros(1, 1, *x.shape[-2:])
            for name in held:
                for plane in planes(getattr(self, name)):
                    plane = plane.float().reshape(1, -1, *plane.shape[-2:]).mean(1, keepdim=True)
                    total += torch.nn.functional.interpolate(plane, size=x.shape[-2:], mode="bilinear")
            if self.previous_controlnet is not None:
                total = total + self.previous_controlnet.get_control(x, *args)["input"][0]
            return {"input": [total], "output": []}

        def copy(self) -> Any:
            return self

    control = Shown()
    for name, value in held.items():
        setattr(control, name, value)
    return control


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "chained"])
@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_control_holds_over_the_picture_is_cropped(pointwise, in_tiles, predict, form, chained):
    held = FORMS[form]()
    control, before = shown(**held), [plane.clone() for plane in planes(held)]
    if chained:
        control = shown().set_previous_controlnet(control)
    x, positive = noise(*FRAME), prompt(control=control, control_apply_to_uncond=True)
    with Recorder() as log:
        whole = predict(pointwise, x, SIGMA, positive)
        tiled = predict(in_tiles(pointwise, GRID, TILE), x, SIGMA, positive)
    # A smooth mask that is stretched twice, or whose cells are larger than latents, is so near.
    near = 0.02 if {"unpadded", "other", "tokens"} & set(form.split()) else 1e-5
    assert (whole - predict(pointwise, x, SIGMA, prompt())).abs().max() > 0.3
    assert (tiled - whole).abs().max() < near * whole.abs().max()
    assert [line for line in log.messages() if "CLEAR" in line] == []
    assert all(map(torch.equal, planes(held), before)), "the original has changed"


def test_what_cannot_be_cropped_is_named_once(pointwise, in_tiles, predict):
    control = shown(embedding=noise(12, 64)[0], strengths=torch.ones(1, 3, 4) * 2, table=torch.ones(2, 2) * 3)
    positive = prompt(control=control, control_apply_to_uncond=True)
    with Recorder() as log:
        for _ in range(2):
            predict(in_tiles(pointwise, GRID, TILE), noise(*FRAME), SIGMA, positive)
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 2 and lines[0] == lines[1], "once for each run"
    assert "Shown.embedding" in lines[0] and "(16, 12, 64)" in lines[0]


def test_a_tile_does_not_keep_the_whole_picture_in_memory(part):
    crop = part("crop_control").PictureCrop(part("crop_conditioning").Tile(0, 0, 4, 4), FRAME)
    control = shown(mask=over_picture(160, 352), reference=over_picture(70, 154, 3))
    control.cond_hint_original = torch.rand(1, 3, 160, 352)
    cropped = part("crop_control").crop_control(control, crop)
    for tensor in (cropped.mask, cropped.reference, cropped.cond_hint_original):
        assert tensor.shape[-2:] == (64, 64)
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_boxes_of_gligen_are_the_tiles(part):
    crop = part("crop_conditioning")
    boxes = [("dog", 8, 8, 0, 0), ("cat", 8, 12, 6, 10), ("sun", 2, 2, 18, 42)]
    cond = {"gligen": ("position", "model", boxes), "model_conds": {}, "uuid": uuid.uuid4()}
    cropped = crop.crop_cond(cond, crop.PictureCrop(crop.Tile(2, 4, 5, 6), FRAME), noise(*FRAME), {})
    assert cropped["gligen"] == ("position", "model", [("cat", 8, 10, 2, 2)])
    assert cond["gligen"][2] is boxes


@pytest.mark.parametrize("ratio", [0.5, 1, 8], ids=["tokens", "latents", "pixels"])
@pytest.mark.parametrize("kind", ["CONDRegular", "CONDNoiseShape"])
def test_inputs_of_the_model_over_the_frame_are_cropped(part, kind, ratio):
    import comfy.conds

    crop = part("crop_conditioning")
    tile = crop.PictureCrop(crop.Tile(2, 4, 5, 6), FRAME)
    value = torch.arange(FRAME[0] * FRAME[1] * ratio**2).reshape(1, 1, int(FRAME[0] * ratio), int(FRAME[1] * ratio))
    cropped = crop.crop_model_cond(getattr(comfy.conds, kind)(value), tile)
    rows, columns = (slice(int(part.start * ratio), int(part.stop * ratio)) for part in tile.latents)
    assert torch.equal(cropped.cond, value[..., rows, columns])


def test_text_and_references_are_no_pictures(part):
    import comfy.conds

    crop = part("crop_conditioning")
    tile = crop.PictureCrop(crop.Tile(2, 4, 5, 6), FRAME)
    for value in (
        comfy.conds.CONDCrossAttn(torch.rand(1, *FRAME)),
        comfy.conds.CONDRegular(torch.rand(1, 32)),
        comfy.conds.CONDRegular(torch.rand(1, 16, 10, 44)),
        comfy.conds.CONDList([torch.rand(1, 16, *FRAME)]),
        comfy.conds.CONDConstant(3.5),
    ):
        assert crop.crop_model_cond(value, tile) is value
