"""ControlNets beside a CLEAR model: the model takes their residuals, and their own blocks attend in its windows."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.control_cases import RADIUS, SIGMA, TEXT, masks_for, noise, oracle, prompt, run
from tests.host.support_comfy.controlnets import oracle_control
from tests.host.support_comfy.sampling import relative_error

WIDE = 100
LAYOUTS = ("xlabs", "union")


@pytest.mark.parametrize("height, width", [(24, 36), (22, 30)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_radius_past_the_grid_is_stock(tiny_flux, clear_node, predict, load, applied, layout, height, width):
    model, x, positive = tiny_flux(), noise(height, width), applied(load(layout), prompt())
    stock = predict(model, x, SIGMA, positive)
    assert relative_error(stock, predict(model, x, SIGMA, prompt())) > 1e-2
    assert relative_error(predict(clear_node(model, radius=WIDE, controlnet="on"), x, SIGMA, positive), stock) < 1e-5


# XLabs' layout cannot take an odd latent in the host.
@pytest.mark.parametrize("layout, height, width", [("xlabs", 24, 36), ("union", 24, 36), ("union", 19, 41)])
def test_windows_are_the_methods(tiny_flux, clear_node, predict, load, applied, layout, height, width):
    model, x, positive = tiny_flux(), noise(height, width), applied(load(layout), prompt())
    grid = (math.ceil(height / 2), math.ceil(width / 2))
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    # The ControlNet's window must matter, or the comparison says nothing of it.
    assert relative_error(predict(oracle(model, grid, RADIUS), x, SIGMA, positive), expected) > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ntk_and_scale_are_the_models(tiny_flux, clear_node, predict, load, applied, layout):
    from comfy.ldm.flux.layers import EmbedND

    model, x, positive, grid = tiny_flux(), noise(24, 36), applied(load(layout), prompt()), (12, 18)

    def scale(text: int) -> float:
        return math.sqrt(math.log(text + 12 * 18, 4608) / 128)

    expected = oracle(model, grid, RADIUS, scale(TEXT))
    expected.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * 7.0, [16, 56, 56]))
    patched = clear_node(model, radius=RADIUS, controlnet="on", ntk_factor=7.0, proportional_attention="on")
    with oracle_control(masks_for(grid, RADIUS), scale(TEXT + (layout == "union")), ntk=7.0):
        wanted = predict(expected, x, SIGMA, positive)
    assert relative_error(predict(patched, x, SIGMA, positive), wanted) < 1e-5
    with oracle_control(masks_for(grid, RADIUS)):
        assert relative_error(predict(expected, x, SIGMA, positive), wanted) > 1e-4


def test_positions_of_another_node_turn_the_ntk_factor_off_for_both(tiny_flux, clear_node, predict, load, applied):
    class OtherEmbedder(torch.nn.Module):
        def __init__(self, base: torch.nn.Module):
            super().__init__()
            self.base = base

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.base(ids)

    model, x, positive = tiny_flux(), noise(24, 36), applied(load("union"), prompt())
    foreign, key = model.clone(), "diffusion_model.pe_embedder"
    foreign.add_object_patch(key, OtherEmbedder(model.get_model_object(key)))
    with oracle_control(masks_for((12, 18), RADIUS)):
        expected = predict(oracle(model, (12, 18), RADIUS), x, SIGMA, positive)
    patched = clear_node(foreign, radius=RADIUS, controlnet="on", ntk_factor=7.0)
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("setting", ["off", "auto"])
def test_off_and_a_small_frame_are_stock_bit_for_bit(tiny_flux, clear_node, load, applied, setting, layout):
    """The residuals are the stock ControlNet's to the last bit, and so is what the windowed model makes of them."""
    seen: list[dict] = []

    def watch(
        executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, control: Any, *args: Any, **kw: Any
    ) -> Any:
        seen.append({name: list(each) for name, each in control.items()})
        return executor(x, t, c_concat, c_crossattn, control, *args, **kw)

    model, latent = tiny_flux(), noise(24, 36)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    positive, negative = applied(load(layout), prompt(), prompt(8))
    run(model, latent, positive, negative, steps=1)
    run(clear_node(model, radius=RADIUS, controlnet=setting), latent, positive, negative, steps=1)
    stock, ours = seen
    assert len(stock["input"]) == 19
    for name in stock:
        assert all(
            torch.equal(left, right) for left, right in zip(stock[name], ours[name], strict=True) if left is not None
        )
    run(clear_node(model, radius=RADIUS, controlnet="on"), latent, positive, negative, steps=1)
    assert not torch.equal(seen[-1]["input"][0], stock["input"][0])


@pytest.mark.parametrize("left_out", [{"min_tokens": 217}, {"end_percent": 0.2}, {"start_percent": 0.7}], ids=str)
def test_where_the_model_goes_without_the_window_so_does_the_controlnet(
    tiny_flux, clear_node, predict, load, applied, left_out
):
    model, x, positive = tiny_flux(), noise(24, 36), applied(load("union"), prompt())
    patched = clear_node(model, radius=RADIUS, controlnet="on", **left_out)
    assert relative_error(predict(patched, x, SIGMA, positive), predict(model, x, SIGMA, positive)) < 1e-5


def test_auto_begins_where_pictures_are_hires(pack, tiny_flux, clear_node, predict, load, applied, monkeypatch):
    """Above 8192 tokens, of which the tests of CLEARAttention make sure; above 200 here, to be quick."""
    families = importlib.import_module(f"{pack.__name__}.clear_core.families")
    monkeypatch.setitem(vars(families.FLUX1), "hires_tokens", 200)
    model, positive = tiny_flux(), applied(load("union"), prompt())
    for width, explicit, other in ((40, "off", "on"), (42, "on", "off")):
        x = noise(20, width)
        auto = predict(clear_node(model, radius=3), x, SIGMA, positive)
        assert torch.equal(auto, predict(clear_node(model, radius=3, controlnet=explicit), x, SIGMA, positive))
        assert not torch.equal(auto, predict(clear_node(model, radius=3, controlnet=other), x, SIGMA, positive))


def test_a_chain_of_two_with_strength_and_a_time_range(tiny_flux, clear_node, load, applied):
    """Two layouts in a row, the second one for a part of the run alone; batch 2, cfg 3."""
    model, latent, grid = tiny_flux(), noise(24, 36, batch=2), (12, 18)
    conds = applied(load("xlabs"), prompt(), prompt(8), strength=0.5)
    positive, negative = applied(load("union"), *conds, strength=0.9, start=0.5, seed=9)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = run(oracle(model, grid, RADIUS), latent, positive, negative, cfg=3.0, steps=3)
        one = run(oracle(model, grid, RADIUS), latent, *conds, cfg=3.0, steps=3)
        always = run(
            oracle(model, grid, RADIUS), latent, *applied(load("union"), *conds, strength=0.9, seed=9), cfg=3.0, steps=3
        )
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(run(patched, latent, positive, negative, cfg=3.0, steps=3), expected) < 1e-5
    assert relative_error(one, expected) > 1e-4 and relative_error(always, expected) > 1e-4


def test_masked_conditioning_with_different_controlnets(tiny_flux, clear_node, predict, load, applied):
    model, x, grid = tiny_flux(), noise(24, 36), (12, 18)
    left = torch.zeros(1, 24, 36)
    left[..., :15] = 1
    positive = applied(load("xlabs"), prompt()) + applied(load("union"), prompt(8))
    positive[0][1]["mask"], positive[1][1]["mask"] = left, 1 - left
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5


def test_an_area_has_the_windows_of_its_own_grid(tiny_flux, clear_node, predict, load, applied):
    model, x = tiny_flux(), noise(32, 36)
    positive = applied(load("union"), prompt())
    positive[0][1].update(area=(24, 20, 4, 8), strength=1.0)
    with oracle_control(masks_for((12, 10), 4)):
        expected = predict(oracle(model, (12, 10), 4), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=4, controlnet="on"), x, SIGMA, positive), expected) < 1e-5


def test_methods_kept_on_the_object_lead_to_the_copy(tiny_flux, clear_node, predict, load, applied):
    """As tiled samplers keep them."""
    model, x, positive, grid = tiny_flux(), noise(24, 36), applied(load("xlabs"), prompt()), (12, 18)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    placed = positive[0][1]["control"]
    placed.get_control = placed.get_control
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert placed.get_control.__self__ is placed


@pytest.mark.parametrize("kind", ["xlabs", "union", "inpaint"])
def test_tiles_get_their_share_of_the_hint_and_their_places(pack, tiny_flux, clear_node, predict, load, applied, kind):
    """In the upscale node's tiles a ControlNet sees the hint and the places of the tile, and the frame's scale."""
    tiles = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.tiled_model")
    # A model that hands on the residuals alone, so that tiles of one call can be told apart.
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(
        executor: Any, x: torch.Tensor, t: Any, c_concat: Any, c_crossattn: Any, control: Any, *args: Any, **kw: Any
    ) -> torch.Tensor:
        calls.append((x, control["input"][0]))
        return x * 0.5

    import comfy.utils

    model, x, control = tiny_flux(), noise(24, 40), load(kind)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    positive = applied(control, prompt())
    placed = positive[0][1]["control"]
    if kind == "inpaint":
        placed.extra_concat_orig = [torch.rand(1, 1, 96, 120, generator=torch.Generator().manual_seed(4)).round()]
    patched = clear_node(model, radius=4, controlnet="on", proportional_attention="on")
    layout = tiles.TileLayout((12, 20), (8, 12), 2)
    predict(tiles.TiledModel(layout, lambda *_: None).install(patched), x, SIGMA, positive)
    tiled = list(calls)
    assert len(tiled) == len(layout.tiles) >= 4
    scale = math.sqrt(math.log(TEXT + (kind == "union") + 12 * 20, 4608) / 128)
    hint = comfy.utils.common_upscale(placed.cond_hint_original, 320, 192, "nearest-exact", "center")
    masks = [comfy.utils.common_upscale(mask, 40, 24, "nearest-exact", "center") for mask in placed.extra_concat_orig]
    for tile, (part, residual) in zip(layout.tiles, tiled, strict=True):
        rows, columns = tile.latents
        calls.clear()
        cropped = applied(control, prompt())
        of_tile = cropped[0][1]["control"]
        of_tile.cond_hint_original = hint[..., rows.start * 8 : rows.stop * 8, columns.start * 8 : columns.stop * 8]
        of_tile.extra_concat_orig = [mask[..., rows, columns] for mask in masks]
        with oracle_control(masks_for((8, 12), 4), scale, offset=(tile.y, tile.x)):
            predict(model, x[..., rows, columns], SIGMA, cropped)
        ((_, expected),) = calls
        assert torch.equal(part, x[..., rows, columns])
        assert relative_error(residual, expected) < 1e-5


def test_a_controlnet_left_dense_is_named_once(pack, tiny_flux, clear_node, predict, load, applied, monkeypatch):
    control = importlib.import_module(f"{pack.__name__}.nodes.host.model.controlnet")
    assert control.DENSE_TOKENS == 16384
    monkeypatch.setattr(control, "DENSE_TOKENS", 200)
    model, positive = tiny_flux(), applied(load("union"), prompt())
    for setting, width, lines in (("off", 42, 1), ("off", 40, 0), ("auto", 42, 1), ("on", 42, 0)):
        patched = clear_node(model, radius=3, controlnet=setting)
        with Recorder() as log:
            for _ in range(2):
                predict(patched, noise(20, width), SIGMA, positive)
        named = [line for line in log.messages() if "CLEAR" in line]
        assert len(named) == lines
        if lines:
            assert "2 double and 1 single blocks, Union" in named[0] and "210" in named[0]


def test_a_controlnet_that_is_no_flux_is_left_as_it_is(tiny_flux, clear_node, predict, load, applied):
    """In a chain, the FLUX ControlNet before it still gets the window."""
    from comfy.controlnet import ControlBase

    class Other(ControlBase):
        control_model = torch.nn.Identity()

        def get_control(self, x: torch.Tensor, t: Any, cond: Any, batch: int, options: Any) -> Any:
            before = self.previous_controlnet.get_control(x, t, cond, batch, options)
            seen.append(self.control_model)
            return {"input": [each * 0.5 for each in before["input"]], "output": before["output"]}

        def get_models(self) -> list:
            return self.previous_controlnet.get_models()

        def copy(self) -> Any:
            made = Other()
            self.copy_to(made)
            return made

    seen: list[Any] = []
    model, x, grid = tiny_flux(), noise(24, 36), (12, 18)
    control = Other()
    control.set_previous_controlnet(applied(load("xlabs"), prompt())[0][1]["control"])
    positive = prompt()
    positive[0][1].update(control=control, control_apply_to_uncond=True)
    with oracle_control(masks_for(grid, RADIUS)):
        expected = predict(oracle(model, grid, RADIUS), x, SIGMA, positive)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    with Recorder() as log:
        for _ in range(2):
            assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
    assert all(each is Other.control_model for each in seen)
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "Identity" in lines[0]


def test_a_compiled_controlnet_is_left_dense_and_named(tiny_flux, clear_node, predict, load, applied):
    """As KJNodes compiles them."""
    model, x = tiny_flux(), noise(24, 36)
    control = load("union")
    control.control_model = torch.compile(control.control_model, backend="eager")
    positive = applied(control, prompt())
    with Recorder() as log:
        out = run(clear_node(model, radius=WIDE, controlnet="on"), x, positive, positive)
    assert [line for line in log.messages() if "ControlNetFlux is compiled" in line]
    assert relative_error(out, run(model, x, positive, positive)) < 1e-5
