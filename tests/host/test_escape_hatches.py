"""start_percent, end_percent, dense_blocks and min_tokens: where the window stays away because it was asked to."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.oracle import window_mask, with_oracle_attention, with_oracle_windows
from tests.host.support_comfy.sampling import conditioning, relative_error

TEXT = 7
GRID = (6, 7)
SIGMA = 0.6
EVERYWHERE = {"radius": 3, "ntk_factor": 1.0, "proportional_attention": "off"}


def noise(seed: int = 1) -> torch.Tensor:
    return torch.randn(1, 16, 12, 14, generator=torch.Generator().manual_seed(seed))


def prompt(**extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


def our_lines(log: Recorder) -> list[str]:
    return [line for line in log.messages() if "CLEAR" in line]


@pytest.mark.parametrize(
    "start, end", [(0.0, 1.0), (0.3, 0.8), (0.0, 0.5), (0.5, 1.0), (0.4, 0.4), (1.0, 1.0)], ids=lambda value: str(value)
)
def test_the_range_is_the_hosts_own(tiny_flux, clear_node, predict, start, end):
    """Windowed exactly where the host would use a conditioning with this range; the stock model elsewhere."""
    from comfy.samplers import get_area_and_mult

    model, x = tiny_flux(), noise()
    sampling = model.get_model_object("model_sampling")
    borders = {"timestep_start": sampling.percent_to_sigma(start), "timestep_end": sampling.percent_to_sigma(end)}
    patched = clear_node(model, **EVERYWHERE, start_percent=start, end_percent=end)
    windowed_model = clear_node(model, **EVERYWHERE)
    seen = set()
    # The borders themselves, their neighbours, and a schedule in an order that no sampler has.
    sigmas = [0.05, 1.0, 0.62, 0.31, 0.9]
    for border in borders.values():
        at = torch.tensor(border, dtype=torch.float32)
        sigmas += [
            float(at),
            float(torch.nextafter(at, torch.tensor(2.0))),
            float(torch.nextafter(at, torch.tensor(0.0))),
        ]
    for sigma in filter(lambda sigma: 0 < sigma <= 1, sigmas):
        used = get_area_and_mult({"model_conds": {}, "uuid": None, **borders}, x, torch.tensor([sigma])) is not None
        seen.add(used)
        expected = predict(windowed_model if used else model, x, sigma, prompt())
        assert torch.equal(predict(patched, x, sigma, prompt()), expected), sigma
    assert seen == ({True} if (start, end) == (0.0, 1.0) else {False} if start == 1.0 else {True, False})


def test_a_whole_range_has_the_window_above_sigma_1_too(tiny_flux, clear_node, predict):
    """Custom noise levels may begin above the model's own; a range of all steps still means all steps."""
    model, x = tiny_flux(), noise()
    windowed = predict(clear_node(model, **EVERYWHERE), x, 1.5, prompt())
    assert not torch.equal(windowed, predict(model, x, 1.5, prompt()))
    late = clear_node(model, **EVERYWHERE, start_percent=0.1)
    assert torch.equal(predict(late, x, 1.5, prompt()), predict(model, x, 1.5, prompt()))


@pytest.mark.parametrize(
    "written, blocks",
    [
        ("0, 3", {("double", 0), ("single", 1)}),
        ("d1 , s0", {("double", 1), ("single", 0)}),
        ("1-2", {("double", 1), ("single", 0)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dense_blocks_are_dense_and_no_others(tiny_flux, clear_node, predict, written, blocks):
    model, x = tiny_flux(), noise()
    found = predict(clear_node(model, **EVERYWHERE, dense_blocks=written), x, SIGMA, prompt())
    assert relative_error(found, predict(with_oracle_windows(model, 3, dense_blocks=blocks), x, SIGMA, prompt())) < 1e-5
    assert relative_error(found, predict(clear_node(model, **EVERYWHERE), x, SIGMA, prompt())) > 1e-3


def test_all_blocks_dense_is_the_stock_model(tiny_flux, clear_node, predict):
    model, x = tiny_flux(), noise()
    patched = clear_node(model, **EVERYWHERE, dense_blocks="d0-1, s0-1")
    assert torch.equal(predict(patched, x, SIGMA, prompt()), predict(model, x, SIGMA, prompt()))


@pytest.mark.parametrize("least, dense", [(42, False), (43, True)], ids=["42", "43"])
def test_min_tokens_counts_image_tokens(tiny_flux, clear_node, predict, least, dense):
    """Neither text nor references: the frame has 6 x 7 image tokens."""
    model, x, positive = tiny_flux(), noise(), prompt(reference_latents=[noise(3)])
    patched = clear_node(model, **EVERYWHERE, min_tokens=least)
    expected = model if dense else clear_node(model, **EVERYWHERE)
    assert torch.equal(predict(patched, x, SIGMA, positive), predict(expected, x, SIGMA, positive))


@pytest.mark.parametrize("least, dense", [(168, False), (169, True)], ids=["168", "169"])
def test_min_tokens_counts_the_frame_of_a_tile(pack, tiny_flux, clear_node, predict, least, dense):
    frame = importlib.import_module(f"{pack.__name__}.nodes.host.model.tile_frame")
    model, x = tiny_flux(), noise()
    patched = clear_node(model, **EVERYWHERE, min_tokens=least)
    patched.model_options["transformer_options"][frame.KEY] = frame.FramePart((12, 14), None)
    expected = model if dense else clear_node(model, **EVERYWHERE)
    assert torch.equal(predict(patched, x, SIGMA, prompt()), predict(expected, x, SIGMA, prompt()))


@pytest.mark.parametrize(
    "hatch",
    [{"start_percent": 0.9}, {"end_percent": 0.1}, {"dense_blocks": "0-3"}, {"min_tokens": 43}],
    ids=lambda hatch: next(iter(hatch)),
)
def test_dense_parts_have_the_scale_and_positions_asked_for(tiny_flux, clear_node, predict, hatch):
    from comfy.ldm.flux.layers import EmbedND

    model, x = tiny_flux(), noise()
    scale = math.sqrt(math.log(TEXT + 42, 64 * 64 + 512) / 128)
    expected = with_oracle_attention(model, torch.ones(TEXT + 42, TEXT + 42, dtype=torch.bool), scale)
    expected.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * 7.0, [16, 56, 56]))
    patched = clear_node(model, radius=3, ntk_factor=7.0, proportional_attention="on", **hatch)
    assert relative_error(predict(patched, x, SIGMA, prompt()), predict(expected, x, SIGMA, prompt())) < 1e-5


@pytest.mark.parametrize(
    "hatch, calls",
    [({"start_percent": 0.9}, 4), ({"dense_blocks": "0, 3"}, 2), ({"min_tokens": 43}, 4)],
    ids=["range", "blocks", "tokens"],
)
@pytest.mark.parametrize("order", ["before", "after"])
def test_dense_parts_run_the_attention_that_was_there_and_say_nothing(
    tiny_flux, clear_node, predict, hatch, calls, order
):
    """As Sage and Flash nodes install theirs; a mask changes nothing about it."""
    masks: list[Any] = []

    def other(func: Any, *args: Any, mask: Any = None, **kwargs: Any) -> torch.Tensor:
        masks.append(mask)
        return func(*args, mask=mask, **kwargs)

    model = tiny_flux()
    early = model.clone()
    early.model_options["transformer_options"]["optimized_attention_override"] = other
    patched = clear_node(early if order == "before" else model, **EVERYWHERE, **hatch)
    patched.model_options["transformer_options"]["optimized_attention_override"] = other
    with Recorder() as log:
        predict(patched, noise(), SIGMA, prompt())
    assert masks == [None] * calls and our_lines(log) == []
    if calls == 4:
        masked = prompt(attention_mask=torch.zeros(1, TEXT + 42, TEXT + 42), attention_mask_img_shape=GRID)
        with Recorder() as log:
            predict(patched, noise(), SIGMA, masked)
        assert all(mask is not None for mask in masks[4:]) and len(masks) == 8 and our_lines(log) == []


@pytest.mark.parametrize(
    "widgets, named",
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "0.8"),
        ({"end_percent": 1.5}, "1.5"),
        ({"start_percent": float("nan")}, "nan"),
        ({"dense_blocks": "0, 4"}, "'4', but this model has 2 double and 2 single blocks"),
        ({"dense_blocks": "all"}, "'all'"),
        ({"min_tokens": -1}, "-1"),
        ({"controlnet": "maybe"}, "maybe"),
    ],
    ids=lambda value: str(value),
)
def test_bad_values_are_named(tiny_flux, clear_node, widgets, named):
    model = tiny_flux()
    with pytest.raises(ValueError, match=named):
        clear_node(model, **widgets)
    assert model.wrappers == {} and model.object_patches == {}


def test_nothing_of_a_dense_step_stays(tiny_flux, clear_node, predict):
    model, x = tiny_flux(), noise()
    patched = clear_node(model, **EVERYWHERE, start_percent=0.5)
    first = predict(patched, x, 0.2, prompt())
    predict(patched, x, 0.99, prompt())
    assert torch.equal(predict(patched, x, 0.2, prompt()), first)
    mask = window_mask(TEXT, GRID, 0, 3)
    assert relative_error(first, predict(with_oracle_attention(model, mask), x, 0.2, prompt())) < 1e-5
