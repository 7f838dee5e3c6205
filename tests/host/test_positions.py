"""The embedder wrapper: exact ids, tiles in their place, and what other nodes did to positions left in being."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest
import torch

from tests.host.support_comfy import relatives
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.controlnets import oracle_control
from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.positions import EMBEDDER, recorded_ids, rotations
from tests.host.support_comfy.sampling import conditioning, predict, relative_error, run_node

TEXT = 7
SIGMA = 0.6
GRID, TILE = (10, 12), (6, 8)
STARTS = [(y, x) for y in (0, 4) for x in (0, 4)]


def noise(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(**extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


def flux() -> Any:
    return build_flux(depth=1, depth_single_blocks=1)


def scaled(model: Any) -> Any:
    from comfy_extras.nodes_rope import ScaleROPE

    asked = {"scale_x": 0.5, "shift_x": -7.25, "scale_y": 1.5, "shift_y": 3.0, "scale_t": 1.0, "shift_t": 2.0}
    return run_node(ScaleROPE, model=model, **asked)[0]


def with_style_tokens(model: Any) -> Any:
    """As the host's USO node adds them: text tokens that no conditioning tells of."""

    def add(args: dict[str, Any]) -> dict[str, Any]:
        ids = torch.zeros_like(args["txt_ids"][:, :3])
        return args | {
            "txt": torch.cat((args["txt"][:, :3], args["txt"]), 1),
            "txt_ids": torch.cat((ids, args["txt_ids"]), 1),
        }

    clone = model.clone()
    clone.set_model_patch(add, "post_input")
    return clone


def with_moved_ids(model: Any) -> Any:
    """Another node that moves image and reference tokens by a fraction of a token."""
    clone = model.clone()
    clone.set_model_patch(lambda args: args | {"img_ids": args["img_ids"] + 0.375}, "post_input")
    return clone


def without_post_input(model: Any) -> Any:
    """A forward of another pack (ReFlux, TeaCache), which calls no post_input patch."""
    clone = model.clone()
    stock = clone.get_model_object("diffusion_model.forward_orig")

    signature = inspect.signature(stock)

    def forward_orig(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.arguments["transformer_options"] = {**call.arguments["transformer_options"], "patches": {}}
        return stock(*call.args, **call.kwargs)

    clone.add_object_patch("diffusion_model.forward_orig", forward_orig)
    return clone


def longcat() -> Any:
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "LongCatImage"):
        pytest.skip("this ComfyUI does not know LongCat-Image")
    return relatives.build_longcat()


BUILDS = {
    "FLUX": (flux, TEXT),
    "ScaleROPE": (lambda: scaled(flux()), TEXT),
    "style tokens": (lambda: with_style_tokens(flux()), TEXT + 3),
    "moved ids": (lambda: with_moved_ids(flux()), TEXT),
    "no post_input": (lambda: without_post_input(flux()), TEXT),
    "LongCat": (longcat, TEXT),
    "Chroma and ScaleROPE": (lambda: scaled(relatives.build_chroma(depth=1, depth_single_blocks=1)), TEXT),
}


@pytest.mark.parametrize(
    "name, windows, method",
    [(name, True, "offset") for name in BUILDS]
    + [("FLUX", False, None), ("no post_input", False, "index"), ("FLUX", True, "uxo"), ("ScaleROPE", False, "uxo")],
)
def test_tiles_have_the_positions_of_the_whole_frame(host, clear_node, in_tiles, name, windows, method):
    """Image, text and reference tokens alike; the host counts uxo's offsets from the picture of the call."""
    build, text = BUILDS[name]
    base, x = build(), noise(20, 24)
    model = clear_node(base, radius=3) if windows else base
    extra = {} if method is None else {"reference_latents": [noise(20, 24, 3)], "reference_latents_method": method}
    with recorded_ids() as seen, Recorder() as log:
        predict(model, x, SIGMA, prompt(**extra))
        predict(in_tiles(model, GRID, TILE), x, SIGMA, prompt(**extra))
    whole, *tiles = seen
    image, after = whole[text : text + 120].unflatten(0, GRID), text + TILE[0] * TILE[1]
    assert len(tiles) == len(STARTS)
    for ids, (y, x) in zip(tiles, STARTS, strict=True):
        expected = image[y : y + TILE[0], x : x + TILE[1]].flatten(0, 1)
        assert torch.allclose(ids[text:after], expected, atol=1e-6, rtol=0)
        assert torch.equal(ids[:text], whole[:text]) and torch.equal(ids[after:], whole[text + 120 :])
    assert [line for line in log.messages() if "position" in line] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_whole_frames_in_float32_are_untouched(host_part, dtype):
    """Not even copied, whatever they are; in lower precision only the host's own grid is recomputed."""
    place = host_part("model.image_positions").place_image
    layout = host_part("model.attention_override").SequenceLayout(2, (300, 2), 1)
    grid = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(300.0), torch.arange(2.0), indexing="ij"), -1)
    compiled = torch.cat((torch.zeros(2, 3), grid.reshape(-1, 3), torch.tensor([[1.0, 299, 5]])))[None].to(dtype)
    eager = compiled.clone()
    eager[0, 2:602, 1] = torch.linspace(0, 299, 300, dtype=dtype).repeat_interleave(2)
    other = eager.clone()
    other[0, 40, 1] += 1
    for ids in (compiled, eager):
        placed = place(ids, layout, None, None)
        assert (placed is ids) == (dtype == torch.float32)
        assert torch.equal(placed[0, 2:602, 1], torch.arange(300.0).repeat_interleave(2))
        assert torch.equal(placed[0, [0, 1, 602]], ids[0, [0, 1, 602]].float())
    assert place(other, layout, None, None) is other
    assert place(compiled[:, :400], layout, None, None).shape[1] == 400


def test_the_hosts_shifts_and_scales_in_low_precision(host_part):
    place = host_part("model.image_positions").place_image
    layout = host_part("model.attention_override").SequenceLayout(1, (300, 2))
    ids = torch.zeros(1, 601, 3, dtype=torch.bfloat16)
    ids[0, 1:, 1] = torch.linspace(2.5, 299 * 0.75 + 2.5, 300, dtype=torch.bfloat16).repeat_interleave(2)
    ids[0, 1:, 2] = torch.tensor([0.0, 1.0]).repeat(300)
    placed = place(ids, layout, None, {"shift_y": 2.5, "scale_y": 0.75})
    assert torch.equal(placed[0, 1::2, 1], 2.5 + 0.75 * torch.arange(300.0))
    assert place(ids, layout, None, None) is ids


def test_every_thread_has_its_own_call(host, host_part):
    """As where the host gives the prompts of one step to several cards."""
    from comfy.ldm.flux.layers import EmbedND

    module = host_part("model.rope_embedder")
    layout, stretch = host_part("model.attention_override").SequenceLayout(0, (1, 4)), module.RopeStretch
    embedder, barrier, found = module.PositionEmbedder(EmbedND(128, 10000, [16, 56, 56])), threading.Barrier(2), {}
    ids = torch.zeros(1, 4, 3)
    ids[..., 2] = torch.arange(4.0)

    def run(factor: float) -> None:
        with module.positions(layout=layout), module.stretched(stretch("constant", factor), None):
            barrier.wait()
            found[factor] = embedder(ids)
            barrier.wait()

    threads = [threading.Thread(target=run, args=(factor,)) for factor in (1.0, 7.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for factor, out in found.items():
        expected = rotations(torch.arange(4), 56, 10000 * factor)
        assert torch.allclose(out[0, 0, :, 36:].double(), expected, atol=1e-6, rtol=0)


class Halved(torch.nn.Module):
    """Another pack's embedder."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.base(ids * 0.5)


def with_other_embedder(model: Any) -> Any:
    clone = model.clone()
    clone.add_object_patch(EMBEDDER, Halved(build_flux().get_model_object(EMBEDDER)))
    return clone


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_packs_embedder_gets_the_ids_of_tiles(host, clear_node, in_tiles, order):
    if order == "before":
        model = clear_node(with_other_embedder(flux()), radius=3, ntk_factor=1.0)
    else:
        model = with_other_embedder(clear_node(flux(), radius=3, ntk_factor=1.0))
    with recorded_ids() as seen, Recorder() as log:
        predict(in_tiles(model, GRID, TILE), noise(20, 24), SIGMA, prompt())
    assert [tuple(ids[TEXT, 1:].tolist()) for ids in seen] == [(y / 2, x / 2) for y, x in STARTS]
    assert [line for line in log.messages() if "CLEAR" in line] == []


def test_an_embedder_that_came_too_late_is_named_once(host, in_tiles):
    with Recorder() as log:
        predict(with_other_embedder(in_tiles(flux(), GRID, TILE)), noise(20, 24), SIGMA, prompt())
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "Halved" in lines[0] and "cannot be moved" in lines[0]


def test_image_tokens_that_cannot_be_found_are_named_once(host, in_tiles):
    """Another node that replaces the ids and their number."""
    model = with_style_tokens(flux())
    model.set_model_patch(lambda args: args | {"img_ids": args["img_ids"] * 0.5 + 0.1}, "post_input")
    with Recorder() as log:
        predict(in_tiles(model, GRID, TILE), noise(20, 24), SIGMA, prompt())
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "not moved" in lines[0]


def test_a_second_installation_changes_nothing(host, clear_node, in_tiles):
    once = clear_node(flux(), radius=3)
    twice = in_tiles(clear_node(once, radius=4), GRID, TILE)
    assert twice.get_model_object(EMBEDDER) is once.get_model_object(EMBEDDER)
    assert len(twice.wrappers["apply_model"]["clear_flux_positions"]) == 1


@pytest.mark.parametrize("kind", ["xlabs", "union"])
@pytest.mark.parametrize("clear", [True, False], ids=["controlnet off", "without CLEAR"])
def test_a_controlnet_without_windows_has_the_places_of_tiles(
    clear_node, host_part, in_tiles, load, applied, kind, clear
):
    import comfy.utils

    # A model that hands on the residuals alone, so that tiles of one call can be told apart.
    residuals: list[torch.Tensor] = []

    def watch(
        executor: Any, x: torch.Tensor, t: Any, c_concat: Any, text: Any, control: Any, *_: Any, **__: Any
    ) -> Any:
        residuals.append(control["input"][0])
        return x * 0.5

    model, x, control = flux(), noise(20, 24), load(kind)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    positive = applied(control, prompt())
    predict(in_tiles(clear_node(model, radius=3, controlnet="off") if clear else model, GRID, TILE), x, SIGMA, positive)
    tiled, layout = residuals[:], host_part("upscale.tiled_model").TileLayout(GRID, TILE, 2)
    hint = comfy.utils.common_upscale(positive[0][1]["control"].cond_hint_original, 192, 160, "nearest-exact", "center")
    length = TEXT + (kind == "union") + TILE[0] * TILE[1]
    for tile, found in zip(layout.tiles, tiled, strict=True):
        rows, columns = tile.latents
        residuals.clear()
        cropped = applied(control, prompt())
        cropped[0][1]["control"].cond_hint_original = hint[
            ..., rows.start * 8 : rows.stop * 8, columns.start * 8 : columns.stop * 8
        ]
        with oracle_control({length: torch.ones(length, length, dtype=torch.bool)}, offset=(tile.y, tile.x)):
            predict(model, x[..., rows, columns], SIGMA, cropped)
        assert relative_error(found, residuals[0]) < 1e-5
