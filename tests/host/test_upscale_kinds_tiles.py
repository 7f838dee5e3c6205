"""Tiles on models of other families than FLUX.1: what is cropped, borders, interrupts, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.host.support_comfy.kinds import SIGMA, counted, enlarged, in_tiles_of, noise, units_of
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import predict, relative_error
from tests.host.support_comfy.test_only_models import KINDS, TinyKind

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, host, pack) -> TinyKind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def tiled(host_part):
    """``tiled(kind, model)`` is the model in tiles."""
    return lambda kind, model: in_tiles_of(host_part, kind, model)


@pytest.fixture(scope="module")
def enlarge(host):
    """``enlarge(kind, model, image, **inputs)`` is picture, samples and info of CLEARUpscale."""
    return lambda *args, **inputs: enlarged(host, *args, **inputs)


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


def change_at_borders(pixels: torch.Tensor, layout: Any) -> float:
    """Mean absolute difference across the rows and columns where a tile begins or ends."""
    steps = []
    for axis in (0, 1):
        edges = {layout.units.pixels * edge for s in layout.starts(axis) for edge in (s, s + layout.tile[axis])}
        places = torch.tensor(sorted(edges - {0, pixels.shape[axis]}))
        steps.append((pixels.index_select(axis, places) - pixels.index_select(axis, places - 1)).abs().mean())
    return float(sum(steps) / 2)


def test_borders_change_no_more_than_the_whole_frame_does(kind, host_part, enlarge):
    model, units = kind.build(seed=1), units_of(host_part, kind)
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


def test_sd3_gets_a_tile_past_its_positions_only_if_it_is_set(host, pack, enlarge):
    """Its table has 40 x 40 places here, 640 px; the host asserts above. An automatic tile keeps to it."""
    kind = KINDS["SD3.5"]
    model = kind.build(pos_embed_max_size=40, num_patches=40 * 40)
    _, _, info = enlarge(kind, model, picture(320, 400), steps=1)
    assert "tiles of 464 x 640 px" in info, info
    out, _, info = enlarge(kind, model, picture(320, 400), steps=1, tile_width=9999, tile_height=9999)
    assert "tiles" not in info and out.shape == (1, 640, 800, 3) and out.isfinite().all(), info
    model = kind.build(pos_embed_max_size=40, num_patches=40 * 40)
    # A learned table has nothing between its places.
    model.model.diffusion_model.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="tile_width is 9999, but the model has positions for 640 px a side"):
        enlarge(kind, model, picture(320, 400), tile_width=9999)
