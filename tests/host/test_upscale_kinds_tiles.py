"""Tiles on models of other families than FLUX.1: what is cropped, places of tokens, borders, masks, interrupts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.positions import recorded_ids
from tests.host.support_comfy.sampling import predict, relative_error, run_node
from tests.host.support_comfy.test_only_models import KINDS, TinyKind

SIGMA = 0.6
GRID, TILE = (4, 6), (3, 3)
"""Units of a frame and of its tiles, two by three of them."""


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, host, pack) -> TinyKind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def units_of(host_part):
    """``units_of(kind)`` are the units of its models."""
    return lambda kind: host_part("model.picture_model").picture_model(kind.build(), kind.vae()).units


@pytest.fixture(scope="module")
def tiled(host_part, units_of):
    """``tiled(kind, model, grid, tile, overlap)`` is the model in tiles; sizes in units."""

    def install(
        kind: TinyKind, model: Any, grid: tuple[int, int] = GRID, tile: tuple[int, int] = TILE, overlap: int = 1
    ) -> Any:
        module = host_part("upscale.tiled_model")
        layout = module.TileLayout(grid, tile, overlap, units=units_of(kind))
        return module.TiledModel(layout, lambda done, tiles: None).install(model)

    return install


def noise(kind: TinyKind, grid: tuple[int, int] = GRID, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """A latent of so many units."""
    cells, time = kind.unit // kind.cell, (1,) if kind.has_frames else ()
    shape = (batch, kind.channels, *time, grid[0] * cells, grid[1] * cells)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pointwise(model: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A clone that answers from each place by itself, so that tiles must give what the whole frame gives; its calls."""
    calls: list[dict[str, Any]] = []

    def apply(
        executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, text: Any = None, *args: Any, **kw
    ):
        calls.append({"x": x, "concat": c_concat, "control": args[0] if args else kw.get("control"), **kw})
        return x * 0.5 + text.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))

    clone = model.clone()
    clone.add_wrapper_with_key("apply_model", "test", apply)
    return clone, calls


def test_tiles_of_a_pointwise_model_are_the_whole_frame(kind, tiled):
    model, calls = pointwise(kind.build())
    x = noise(kind, batch=2)
    whole = predict(model, x, SIGMA, kind.prompt())
    calls.clear()
    assert torch.allclose(predict(tiled(kind, model), x, SIGMA, kind.prompt()), whole, atol=1e-5)
    side = 3 * kind.unit // kind.cell
    assert {tuple(call["x"].shape) for call in calls} == {(*x.shape[:-2], side, side)} and len(calls) == 6


def test_areas_and_masks_are_cropped(kind, tiled):
    """In latent cells, which are more or fewer px than FLUX.1's; also with an axis of time."""
    model, _ = pointwise(kind.build())
    x = noise(kind)
    height, width = x.shape[-2:]
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -1, 1 : width // 2] = torch.linspace(0.1, 1, width // 2 - 1)
    for extra in (
        {"area": (max(1, height // 2), max(1, width // 3), 1, width // 3), "strength": 0.7},
        {"mask": mask, "mask_strength": 0.8},
    ):
        both = kind.prompt(**extra) + kind.prompt(9)
        whole = predict(model, x, SIGMA, both)
        assert torch.allclose(predict(tiled(kind, model), x, SIGMA, both), whole, atol=1e-5), extra
        assert relative_error(whole, predict(model, x, SIGMA, kind.prompt(9))) > 1e-4, extra


def test_controlnet_hints_are_cropped(kind, tiled):
    """With a ControlNet that hands its hint on, a tile gets its own part of it."""
    import comfy.utils
    from comfy.controlnet import ControlBase

    class Shown(ControlBase):
        def get_control(self, x: torch.Tensor, t: torch.Tensor, cond: Any, batch: int, options: Any) -> Any:
            sides = (kind.cell * x.shape[-1], kind.cell * x.shape[-2])
            hint = comfy.utils.common_upscale(self.cond_hint_original, *sides, self.upscale_algorithm, "center")
            small = torch.nn.functional.avg_pool2d(hint, kind.cell).mean(1, keepdim=True)
            return {"input": [small], "output": []}

        def copy(self) -> Any:
            made = Shown()
            self.copy_to(made)
            return made

    control = Shown().set_cond_hint(torch.rand(1, 3, 50, 100, generator=torch.Generator().manual_seed(4)))
    control.compression_ratio = kind.cell
    model, calls = pointwise(kind.build())
    x, positive = noise(kind), kind.prompt(control=control, control_apply_to_uncond=True)
    predict(model, x, SIGMA, positive)
    whole = calls.pop()["control"]["input"][0]
    predict(tiled(kind, model), x, SIGMA, positive)
    side = 3 * kind.unit // kind.cell
    assert torch.equal(calls[0]["control"]["input"][0], whole[..., :side, :side])
    assert torch.equal(calls[-1]["control"]["input"][0], whole[..., -side:, -side:])


@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image", "Z-Image"])
def test_tiles_have_the_positions_of_the_whole_frame(host, pack, tiled, name):
    """Ids that count from the picture's corner, from its middle, and such as the model itself shifts."""
    kind = KINDS[name]
    model, x = kind.build(), noise(kind)
    with recorded_ids() as seen:
        predict(model, x, SIGMA, kind.prompt())
        whole = list(seen)
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, kind.prompt())
    calls = len(seen) // 6
    assert calls == len(whole)
    for number, (y, left) in enumerate((y, left) for y in (0, 1) for left in (0, 2, 3)):
        for ids, frame in zip(seen[calls * number :], whole, strict=False):
            start = image_start(frame)
            if start is None:  # Z-Image's text, by itself
                assert torch.equal(ids, frame)
                continue
            expected = frame[start : start + 24].unflatten(0, GRID)[y : y + 3, left : left + 3]
            assert torch.equal(ids[start : start + 9], expected.flatten(0, 1)), (number, ids)
            assert torch.equal(ids[:start], frame[:start])


def test_a_table_of_positions_is_read_at_the_tiles_place(host, pack, tiled):
    """SD3's, which the host crops to the middle; where the frame is past its end, a tile has the middle as before."""
    kind, seen = KINDS["SD3.5"], []
    for most in (64, 5):
        model, x = kind.build(pos_embed_max_size=most, num_patches=most**2), noise(kind)
        inner = model.model.diffusion_model
        inner.x_embedder.register_forward_hook(lambda module, args, out: seen.append(out.detach().clone()))
        joint = type(inner).forward_core_with_concat
        inputs: list[torch.Tensor] = []
        inner.forward_core_with_concat = lambda image, *args, **kw: (
            inputs.append(image) or joint(inner, image, *args, **kw)
        )
        if most == 64:
            predict(model, x, SIGMA, kind.prompt())
            whole = (inputs.pop() - seen.pop())[0].unflatten(0, GRID)
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, kind.prompt())
        assert len(inputs) == len(seen) == 6
        tiles = [(image - embedded)[0].unflatten(0, TILE) for image, embedded in zip(inputs, seen, strict=True)]
        for number, (y, left) in enumerate((y, left) for y in (0, 1) for left in (0, 2, 3)):
            expected = whole[y : y + 3, left : left + 3] if most == 64 else tiles[0]
            assert torch.allclose(tiles[number], expected, atol=1e-5)
        seen.clear()


def image_start(ids: torch.Tensor) -> int | None:
    """Index of the first image token of a frame of :data:`GRID`, found by rows and columns that count by one."""
    steps = torch.stack(torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij"), dim=-1).flatten(
        0, 1
    )
    for start in range(len(ids) - len(steps) + 1):
        places = ids[start : start + len(steps), 1:3]
        if torch.equal(places - places[:1], steps.to(places)):
            return start
    return None


@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image"])
def test_references_are_whole_and_keep_their_places(host, pack, tiled, name):
    kind = KINDS[name]
    model, x = kind.build(), noise(kind)
    positive = kind.prompt(reference_latents=[noise(kind, (2, 3), seed=5)])
    with recorded_ids() as seen:
        predict(model, x, SIGMA, positive)
        whole = seen[0]
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, positive)
    assert len(seen) == 6 and all(torch.equal(ids[-6:], whole[-6:]) for ids in seen)


@pytest.fixture(scope="module")
def enlarge(host):
    """``enlarge(kind, model, image, **inputs)`` is picture, samples and info of CLEARUpscale."""

    def run(kind: TinyKind, model: Any, image: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, str]:
        inputs = {"positive": kind.prompt(), "vae": kind.vae(), "steps": 2, "seed": 3, **inputs}
        with torch.inference_mode():
            out, latent, info = run_node(host.stock("CLEARUpscale"), image=image, model=model, **inputs)
        return out, latent["samples"], info

    return run


def change_at_borders(pixels: torch.Tensor, layout: Any) -> float:
    """Mean absolute difference across the rows and columns where a tile begins or ends."""
    steps = []
    for axis in (0, 1):
        edges = {layout.units.pixels * edge for s in layout.starts(axis) for edge in (s, s + layout.tile[axis])}
        places = torch.tensor(sorted(edges - {0, pixels.shape[axis]}))
        steps.append((pixels.index_select(axis, places) - pixels.index_select(axis, places - 1)).abs().mean())
    return float(sum(steps) / 2)


def test_borders_change_no_more_than_the_whole_frame_does(kind, host_part, units_of, enlarge):
    model, units = kind.build(seed=1), units_of(kind)
    by = 1 if kind.unit < 64 else 2
    image = torch.nn.functional.interpolate(picture(48, 72).movedim(-1, 1), size=(256 * by, 384 * by), mode="bicubic")
    image = image.movedim(1, -1).clamp(0, 1)
    whole, _, _ = enlarge(kind, model, image, tile_width=9999, tile_height=9999)
    ratios, jumps = {}, {}
    # Tiles of 256 px fit the frame exactly, so that without an overlap there is none.
    for tile, overlap in ((320 * by, 128 * by), (256 * by, 0)):
        sides = {"tile_width": tile, "tile_height": tile, "tile_overlap": overlap}
        layout = host_part("upscale.tiled_model").TileLayout.of_pixels(
            units.grid(512 * by, 768 * by), tile, tile, overlap, units
        )
        assert len(layout.tiles) >= 4
        out, _, info = enlarge(kind, model, image, **sides)
        assert f"{len(layout.tiles)} tiles of {tile} x {tile} px, overlap {overlap}" in info
        jumps[overlap] = change_at_borders(out[0] - whole[0], layout) / change_at_borders(whole[0], layout)
        ratios[overlap] = change_at_borders(out[0], layout) / change_at_borders(whole[0], layout)
    assert abs(ratios[128 * by] - 1) < 0.05, ratios
    # What a tile makes otherwise than the frame does ends more softly where tiles are blended.
    assert jumps[128 * by] < 0.95 * jumps[0], jumps


def mask_of_a_tenth(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 5] = 1
    return mask


def test_a_mask_over_a_tenth_computes_the_tiles_that_it_touches(kind, host_part, enlarge):
    """Everything else is bit for bit what it is when all tiles are computed, and the counted work falls with them."""
    model, calls = counted(kind.build())
    side = 4 * kind.unit
    image = picture(side, 10 * kind.unit)
    mask = mask_of_a_tenth(*image.shape[1:3])
    inputs = {"upscale_by": 1.0, "mask": mask, "tile_width": side // 2, "tile_height": side // 2, "tile_overlap": 0}
    forecast = host_part("upscale.forecast")
    out, samples, info = enlarge(kind, model, image, **inputs)
    assert len(calls) == 2 * 1 and "10 tiles of" in info and "9 of them without a masked pixel" in info
    assert forecast._evaluations["euler"] == pytest.approx(1.0, rel=0.01)
    every = model.clone()
    every.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    calls.clear()
    expected, expected_samples, _ = enlarge(kind, every, image, **inputs)
    assert len(calls) == 2 * 10
    assert torch.equal(samples, expected_samples) and torch.equal(out, expected)
    outside = mask[0] == 0
    assert torch.equal(out[:, outside], image[:, outside]) and not torch.equal(out, image)


def counted(model: Any) -> tuple[Any, list[int]]:
    """A clone that notes its calls."""
    calls: list[int] = []
    clone = model.clone()
    clone.add_wrapper_with_key(
        "apply_model", "count", lambda executor, *args, **kw: calls.append(1) or executor(*args, **kw)
    )
    return clone, calls


def test_masks_of_a_batch_are_its_items(kind, enlarge):
    """With an axis of time too, where the host takes the masks of a batch for frames."""
    side = 2 * kind.unit
    image = picture(side, side).repeat(2, 1, 1, 1)
    mask = torch.zeros(2, side, side)
    mask[0, :, : side // 2] = 1
    mask[1, : side // 2] = 1
    both, _, _ = enlarge(kind, kind.build(), image, mask=mask, upscale_by=1.0)
    alone, _, _ = enlarge(kind, kind.build(), image[:1], mask=mask[:1], upscale_by=1.0)
    for item in (0, 1):
        outside = mask[item] == 0
        assert torch.equal(both[item, outside], image[item, outside])
        assert not torch.equal(both[item, ~outside], image[item, ~outside])
    assert relative_error(both[:1], alone) < 1e-4


def test_an_interrupt_ends_the_run_between_tiles_and_the_next_one_is_whole(kind, enlarge):
    import comfy.model_management as management

    image, inputs = picture(4 * kind.unit, 4 * kind.unit), {"upscale_by": 1.0, "tile_overlap": 0}
    inputs.update(tile_width=2 * kind.unit, tile_height=2 * kind.unit)
    expected, _, _ = enlarge(kind, kind.build(), image, **inputs)
    model, calls = counted(kind.build())
    made = len(calls)

    def stop(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if len(calls) - made == 2:
            management.interrupt_current_processing()
        return executor(*args, **kwargs)

    interrupted = model.clone()
    interrupted.add_wrapper_with_key("apply_model", "stop", stop)
    with pytest.raises(management.InterruptProcessingException):
        enlarge(kind, interrupted, image, **inputs)
    assert len(calls) == 2
    again, _, _ = enlarge(kind, model, image, **inputs)
    assert torch.equal(again, expected)


def test_out_of_memory_names_the_tiles_to_set(kind, enlarge):
    import comfy.model_management as management

    model = kind.build().clone()

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        raise management.OOM_EXCEPTION("CUDA out of memory")

    model.add_wrapper_with_key("apply_model", "fail", fail)
    with pytest.raises(management.OOM_EXCEPTION) as refused:
        enlarge(kind, model, picture(64, 64))
    sentence = str(refused.value)
    assert sentence.startswith(
        "Out of memory while denoising stage 1 (128 x 128 px): set tile_width and tile_height to 256"
    )


def test_tiles_too_small_for_the_model_are_refused(kind, enlarge):
    least = 2 * kind.unit
    with pytest.raises(ValueError, match=f"tile_width is {kind.unit}; expected at least {least} px"):
        enlarge(kind, kind.build(), picture(128, 128), tile_width=kind.unit, tile_height=128, tile_overlap=0)


def test_sd3_never_gets_a_tile_past_its_positions(host, pack, enlarge):
    """Its table has 40 x 40 places here, 640 px; the host asserts above. An automatic tile keeps to it."""
    kind = KINDS["SD3.5"]
    model = kind.build(pos_embed_max_size=40, num_patches=40 * 40)
    _, _, info = enlarge(kind, model, picture(320, 400), steps=1)
    assert "tiles of 464 x 640 px" in info, info
    with pytest.raises(ValueError, match="tile_width is 9999, but the model has positions for 640 px a side"):
        enlarge(kind, model, picture(320, 400), tile_width=9999)
