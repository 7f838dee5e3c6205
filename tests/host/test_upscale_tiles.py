"""Tiles inside a denoising step: positions, scale, conditioning and ControlNet hints are the whole frame's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.host.support_comfy.sampling import conditioning, relative_error

SIGMA = 0.6


def noise(height: int, width: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 2, tokens: int = 7, **extra: Any) -> list:
    generator = torch.Generator().manual_seed(seed)
    out = conditioning(torch.randn(1, tokens, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


class Recorded:
    """A diffusion model's inputs, call by call, with an answer that depends on each place by itself.

    Where the model looks at nothing but its own token, tiles must give what the whole frame gives.
    """

    def __init__(self, patcher: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.patcher = patcher.clone()
        # A function: attributes of an object that is called in a step are kept for each tile.
        self.patcher.add_wrapper_with_key("apply_model", "test", lambda *args, **kwargs: self.apply(*args, **kwargs))

    def apply(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **extra: Any,
    ) -> torch.Tensor:
        self.calls.append({"x": x, "control": control, "options": transformer_options, "text": c_crossattn, **extra})
        out = x * 0.5 + c_crossattn.mean()
        return out if control is None else out + control["input"][0]


@pytest.fixture
def recorded(tiny_flux):
    return Recorded(tiny_flux())


def test_tiles_of_a_pointwise_model_are_the_whole_frame(recorded, in_tiles, predict):
    x = noise(20, 44, batch=2)
    whole = predict(recorded.patcher, x, SIGMA, prompt())
    out = predict(in_tiles(recorded.patcher, (10, 22), (6, 9)), x, SIGMA, prompt())
    assert torch.allclose(out, whole, atol=1e-5)
    assert {tuple(call["x"].shape[2:]) for call in recorded.calls[1:]} == {(12, 18)} and len(recorded.calls) > 4


def test_one_tile_of_the_frames_size_changes_nothing(tiny_flux, in_tiles, predict):
    model, x = tiny_flux(), noise(20, 24)
    assert torch.equal(
        predict(in_tiles(model, (10, 12), (10, 12)), x, SIGMA, prompt()), predict(model, x, SIGMA, prompt())
    )


def test_tokens_keep_their_positions_and_references_theirs(tiny_flux, in_tiles, predict):
    seen = []

    class Watched(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base = base

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            seen.append(ids[0].clone())
            return self.base(ids)

    model = tiny_flux(depth=1, depth_single_blocks=1)
    key = "diffusion_model.pe_embedder"
    model.add_object_patch(key, Watched(model.get_model_object(key)))
    positive = prompt(reference_latents=[noise(6, 8, seed=3)])
    predict(model, noise(20, 24), SIGMA, positive)
    (whole,) = seen
    seen.clear()
    predict(in_tiles(model, (10, 12), (6, 8)), noise(20, 24), SIGMA, positive)
    text, image = whole[:7], whole[7:127].reshape(10, 12, 3)
    starts = [(y, x) for y in (0, 4) for x in (0, 4)]
    assert len(seen) == 4
    for ids, (y, x) in zip(seen, starts, strict=True):
        assert torch.equal(ids[:7], text)
        assert torch.equal(ids[7:55].reshape(6, 8, 3), image[y : y + 6, x : x + 8])
        assert torch.equal(ids[55:], whole[127:])


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "dense"])
def test_scale_and_ntk_are_the_whole_frames(tiny_flux, clear_node, in_tiles, predict, host_part, monkeypatch, windows):
    """A frame of 8256 tokens is hi-res, its tiles are not."""
    model, x = tiny_flux(depth=1, depth_single_blocks=1), noise(128, 258)
    radius = 3 if windows else 4096
    auto = in_tiles(clear_node(model, radius=radius), (64, 129), (64, 33), 0)
    base = clear_node(model, radius=radius, ntk_factor=10.0, proportional_attention="off")
    scales = []
    own = host_part("model.attention_override").PreparedAttention

    class Watched(own):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            scales.append(options["scale"])

    monkeypatch.setattr(host_part("model.attention_override"), "PreparedAttention", Watched)
    predict(auto, x, SIGMA, prompt())
    predict(in_tiles(base, (64, 129), (64, 33), 0), x, SIGMA, prompt())
    half = len(scales) // 2
    expected = math.sqrt(math.log(7 + 64 * 129, 4608) / 128)
    assert all(math.isclose(scale, expected) for scale in scales[:half])
    assert all(math.isclose(scale, 128**-0.5) for scale in scales[half:])


def test_far_from_borders_windows_in_tiles_are_the_whole_frames(tiny_flux, clear_node, in_tiles, predict):
    """One block reaches a radius far: past that from a tile's border nothing can tell the tile from the frame."""
    model = clear_node(tiny_flux(depth=0, depth_single_blocks=1), radius=3)
    x, positive = noise(20, 64), prompt()
    whole = predict(model, x, SIGMA, positive)
    out = predict(in_tiles(model, (10, 32), (10, 18), 4), x, SIGMA, positive)
    # Text tokens attend to the tile alone, but in one block they do not come back to the image.
    inside = [slice(0, 2 * 11), slice(2 * 21, 64)]
    for columns in inside:
        assert relative_error(out[..., columns], whole[..., columns]) < 1e-5
    assert relative_error(out, whole) > 1e-5


@pytest.mark.parametrize("area", [(8, 20, 6, 10), (20, 44, 0, 0), (4, 6, 0, 38), (10, 16, 10, 28)], ids=str)
def test_conditioning_areas_are_cropped(recorded, in_tiles, predict, area):
    x, both = noise(20, 44), prompt(area=area, strength=0.7) + prompt(seed=9)
    whole = predict(recorded.patcher, x, SIGMA, both)
    out = predict(in_tiles(recorded.patcher, (10, 22), (6, 9)), x, SIGMA, both)
    assert torch.allclose(out, whole, atol=1e-5)


@pytest.mark.parametrize("bounds", [True, False], ids=["bounds", "whole"])
def test_conditioning_masks_are_cropped(recorded, in_tiles, predict, bounds):
    mask = torch.zeros(1, 20, 44)
    mask[:, 3:12, 5:30] = torch.linspace(0.1, 1, 25)
    x = noise(20, 44)
    both = prompt(mask=mask, mask_strength=0.8, set_area_to_bounds=bounds) + prompt(seed=9)
    whole = predict(recorded.patcher, x, SIGMA, both)
    out = predict(in_tiles(recorded.patcher, (10, 22), (6, 9)), x, SIGMA, both)
    assert torch.allclose(out, whole, atol=1e-5)


def test_inpaint_inputs_are_cropped(tiny_flux, in_tiles, predict):
    """A model with extra channels (Fill, Canny, Depth) sees the tile's share of them."""
    watched = Recorded(tiny_flux(in_channels=32, out_channels=16))
    concat = torch.arange(20 * 44, dtype=torch.float32).reshape(1, 1, 20, 44).repeat(1, 16, 1, 1)
    seen = []

    def watch(executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, *args: Any, **kw: Any) -> Any:
        seen.append(c_concat)
        return executor(x, t, c_concat, *args, **kw)

    model = watched.patcher.clone()
    model.wrappers["apply_model"] = {"first": [watch], **model.wrappers["apply_model"]}
    positive = prompt(concat_latent_image=concat)
    predict(model, noise(20, 44), SIGMA, positive)
    whole = seen.pop()
    predict(in_tiles(model, (10, 22), (6, 9)), noise(20, 44), SIGMA, positive)
    assert whole.shape[2:] == (20, 44) and seen
    assert torch.equal(seen[0], whole[..., :12, :18])
    assert torch.equal(seen[-1], whole[..., 8:, 26:])


def test_attention_masks_are_cropped(host_part):
    text, grid = 3, (4, 5)
    length = text + 20
    mask = torch.arange(length * length).reshape(1, length, length)
    crop = host_part("crop.crop_conditioning")
    tile = crop.Tile(1, 2, 2, 3)
    cropped = crop.crop_token_mask(mask, tile, grid[1], 20)
    tokens = [0, 1, 2] + [text + y * 5 + x for y in (1, 2) for x in (2, 3, 4)]
    assert torch.equal(cropped[0], mask[0][tokens][:, tokens])


def test_controlnet_hints_are_cropped(host, recorded, in_tiles, predict):
    """With a ControlNet that hands its hint on, tiles get what the whole frame gets."""
    from comfy.controlnet import ControlBase

    class Shown(ControlBase):
        encoded = 0

        def get_control(self, x: torch.Tensor, t: torch.Tensor, cond: Any, batch: int, options: Any) -> Any:
            import comfy.utils

            if self.cond_hint is None or self.cond_hint.shape[2:] != (8 * x.shape[2], 8 * x.shape[3]):
                Shown.encoded += 1
                self.cond_hint = comfy.utils.common_upscale(
                    self.cond_hint_original, 8 * x.shape[3], 8 * x.shape[2], self.upscale_algorithm, "center"
                )
            small = torch.nn.functional.avg_pool2d(self.cond_hint, 8).mean(1, keepdim=True)
            before = self.previous_controlnet and self.previous_controlnet.get_control(x, t, cond, batch, options)
            return {"input": [small + (before["input"][0] if before else 0)], "output": []}

        def copy(self) -> Any:
            made = Shown()
            self.copy_to(made)
            return made

    generator = torch.Generator().manual_seed(4)
    control = Shown().set_cond_hint(torch.rand(1, 3, 50, 100, generator=generator))
    control.set_previous_controlnet(Shown().set_cond_hint(torch.rand(1, 3, 40, 88, generator=generator)))
    x, positive = noise(20, 44), prompt(control=control, control_apply_to_uncond=True)
    whole = predict(recorded.patcher, x, SIGMA, positive)
    Shown.encoded = 0
    model = in_tiles(recorded.patcher, (10, 22), (6, 9))
    assert torch.allclose(predict(model, x, SIGMA, positive), whole, atol=1e-5)
    tiles = len(recorded.calls) - 1
    assert Shown.encoded == 2 * tiles
    assert control.cond_hint_original.shape == (1, 3, 50, 100)


def test_every_tile_is_told_and_can_end_the_run(tiny_flux, in_tiles, predict):
    told = []
    predict(
        in_tiles(tiny_flux(), (10, 22), (6, 9), on_tile=lambda *progress: told.append(progress)),
        noise(20, 44),
        SIGMA,
        prompt(),
    )
    assert told == [(i, len(told)) for i in range(1, len(told) + 1)] and len(told) > 4

    def stop(done: int, tiles: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(in_tiles(tiny_flux(), (10, 22), (6, 9), on_tile=stop), noise(20, 44), SIGMA, prompt())


def test_the_host_makes_room_for_a_tile(tiny_flux, in_tiles, predict, monkeypatch):
    import comfy.sampler_helpers

    shapes = []
    estimate = comfy.sampler_helpers.estimate_memory

    def watch(model: Any, shape: Any, conds: Any) -> Any:
        shapes.append(list(shape))
        return estimate(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", watch)
    predict(in_tiles(tiny_flux(), (10, 22), (6, 9)), noise(20, 44), SIGMA, prompt())
    assert shapes == [[1, 16, 12, 18]]
