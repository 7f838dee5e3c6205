"""One estimate of a call's memory: what it counts is what a run takes, and tiles, host and texts all use it."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import torch

from tests.host.support_comfy import relatives
from tests.host.support_comfy.memory_counts import Planner, counted_peak, noise, prompt, tokens_of
from tests.host.support_comfy.pictures import VAE_NAME, picture, write_vae_files
from tests.host.support_comfy.sampling import run_node


@pytest.fixture
def planner(pack, clear_node):
    return Planner(pack, clear_node)


PROMPTS = {
    "short": (7, ()),
    "long": (900, ()),
    "reference": (7, ((48, 48),)),
    "two references": (7, ((40, 48), (31, 22))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [128, None], ids=["chunked", "whole"])
@pytest.mark.parametrize("brings", PROMPTS)
def test_a_call_takes_what_is_planned(tiny_flux, planner, monkeypatch, brings, chunk, dtype):
    text, references = PROMPTS[brings]
    planner.attend_as_planned(monkeypatch)
    model, x = planner.clear(tiny_flux(dtype, context_in_dim=340), chunk), noise(48, 48)
    positive = prompt(text, 340, **({"reference_latents": [noise(*size) for size in references]} if references else {}))
    planned = planner.plan(model, positive)
    assert counted_peak(model, x, positive) == pytest.approx(planned.peak_bytes(tokens_of(x)), rel=0.02)


@pytest.mark.parametrize("kind", ["FLUX.1 without CLEAR", "Chroma", "Ovis-Image"])
def test_models_whose_blocks_are_never_chunked(tiny_flux, clear_node, planner, monkeypatch, kind):
    planner.attend_as_planned(monkeypatch)
    monkeypatch.setattr(planner.part("model.chunked_blocks"), "parts_of", None)  # nothing may be chunked
    if kind == "FLUX.1 without CLEAR":
        model = tiny_flux()
    else:
        model = clear_node(relatives.build_chroma() if kind == "Chroma" else relatives.build_ovis(), radius=3)
    positive, x = prompt(), noise(128, 128)
    (call,) = planner.plan(model, positive).calls
    assert call.chunk is None
    assert counted_peak(model, x, positive) == pytest.approx(call.peak_bytes(tokens_of(x)), rel=0.02)


@pytest.mark.parametrize(
    "layouts", [("xlabs",), ("union",), ("inpaint",), ("xlabs", "union"), ("union", "union")], ids=str
)
@pytest.mark.parametrize("controlnet", ["on", "off"])
def test_controlnets_count(tiny_flux, planner, monkeypatch, load, applied, layouts, controlnet):
    planner.attend_as_planned(monkeypatch)
    model, x, positive = planner.clear(tiny_flux(), controlnet=controlnet), noise(48, 64), prompt()
    for layout in layouts:
        positive = applied(load(layout), positive)
    alone, planned = planner.plan(model, prompt()), planner.plan(model, positive)
    assert len(planned.calls[0].controls) == len(layouts) and planned.weights > alone.weights
    assert counted_peak(model, x, positive) == pytest.approx(planned.peak_bytes(tokens_of(x)), rel=0.03)
    assert planned.peak_bytes(tokens_of(x)) > 1.2 * alone.peak_bytes(tokens_of(x))


@pytest.fixture(scope="module")
def vae(host):
    write_vae_files(host.base / "models" / "vae_approx")
    return run_node(host.stock("VAELoader"), vae_name=VAE_NAME)[0]


@pytest.fixture
def told(monkeypatch):
    """What the host was asked to make room for: [(for two prompts at once, for one)]."""
    import comfy.sampler_helpers

    asked = []
    original = comfy.sampler_helpers.estimate_memory

    def estimate(*args: Any) -> Any:
        asked.append(original(*args))
        return asked[-1]

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", estimate)
    return asked


@pytest.fixture
def card(monkeypatch):
    """``card(budget)`` is a card with so many bytes for a call."""
    import comfy.model_management

    def install(budget: int) -> None:
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: 8 * budget)

    return install


CASES = {
    "plain": {},
    "a reference": {"reference_latents": (8, 6)},
    "a long prompt": {"text": 25},
    "a ControlNet": {"control": "union"},
    "a longer negative": {"negative": 25},
}


@pytest.mark.parametrize("kind", ["FLUX.1", "Chroma"])
@pytest.mark.parametrize("brings", CASES)
def test_tiles_host_and_info_have_one_number(
    host, vae, tiny_flux, clear_node, planner, told, card, load, applied, brings, kind
):
    case = CASES[brings]
    base = tiny_flux() if kind == "FLUX.1" else relatives.build_chroma()
    model, positive = clear_node(base, radius=3), prompt(case.get("text", 7))
    if "reference_latents" in case:
        positive[0][1]["reference_latents"] = [noise(*case["reference_latents"])]
    if "control" in case:
        positive = applied(load(case["control"]), positive)
    stage = planner.part("upscale.stage")
    inputs = stage.StageInputs(model, positive, vae, prompt(case["negative"]) if "negative" in case else None)
    plan, plain = inputs.memory(), stage.StageInputs(model, prompt(), vae).memory()
    # With nothing but a short prompt, 128 x 128 px fit.
    card(int(1.01 * plain.peak_bytes(64)))
    settings = stage.StageSettings(steps=1, tile_overlap=16)
    stages = importlib.import_module(f"{planner.pack.__name__}.clear_core.sdedit").plan_stages(128, 128, upscale_by=1.0)
    tiles = settings.tiles(inputs, stages[0])
    needs_less = plan.peak_bytes(64) <= 1.01 * plain.peak_bytes(64)
    assert tiles.is_whole == needs_less
    image = tiles.tile[0] * tiles.tile[1]
    with torch.inference_mode():
        *_, info = run_node(
            host.stock("CLEARUpscale"),
            image=picture(128, 128),
            model=model,
            positive=positive,
            vae=vae,
            upscale_by=1.0,
            steps=1,
            tile_overlap=16,
            **({"negative": inputs.negative} if inputs.negative else {}),
        )
    assert told == [pytest.approx((2 * plan.peak_bytes(image), plan.peak_bytes(image)))]
    (said,) = re.findall(r"about ([0-9.]+) GiB beside the weights", info)
    assert said == f"{plan.peak_bytes(image) / 2**30:.1f}"


def test_inspect_says_what_is_planned_without_a_prompt(tiny_flux, clear_node, planner):
    inspect, sizes = planner.part("inspect.read_model"), (2048, 2048)
    for model in (tiny_flux(), clear_node(tiny_flux()), clear_node(relatives.build_chroma())):
        row = inspect.inspect_model(model, sizes, 1.0, "latent").row(sizes)
        assert row.memory == planner.plan(model).peak_bytes(128 * 128)
    whole, chunked = (planner.plan(model).peak_bytes(256 * 256) for model in (tiny_flux(), clear_node(tiny_flux())))
    assert chunked < 0.9 * whole
