"""How the rotary base is stretched in the host: rotations of every call against the formulas, at that call's sigma."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.host.support_comfy import relatives
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.positions import EMBEDDER
from tests.host.support_comfy.sampling import conditioning

TEXT = 7
SIDE = 8
"""Native side in tokens that the families are given here, so that small frames are large."""

GRID, TILE = (10, 13), (6, 8)
KINDS = ("constant", "clipped", "fading")
AXES = (16, 56, 56)


def small() -> Any:
    return build_flux(depth=1, depth_single_blocks=1)


def frequencies(kind: str, factor: float, frame: tuple[int, int], sigma: float) -> list[Tensor]:
    """float64 frequencies of each axis, from the published formulas."""
    found = []
    for axis, size in enumerate(AXES):
        exponents = torch.arange(0, size, 2).double() / size
        if kind == "fading":
            grown = factor or (max(frame[axis - 1] / SIDE, 1) ** (size / (size - 2)) if axis else 1)
            found.append((10000 * (grown if axis else 1) ** (2 * sigma**2)) ** -exponents)
            continue
        found.append((10000 * factor) ** -exponents)
        if kind == "clipped":
            slowest = math.sqrt(frame[0] * frame[1]) / SIDE
            found[-1] = torch.maximum(found[-1], 10000**-exponents / slowest)
    return found


def expected(omegas: list[Tensor], text: int, grid: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Tensor:
    """(text + image, 64, 2, 2) rotations of text at 0 and of an image at its rows and columns."""
    rows, columns = (torch.arange(side).double() + at for side, at in zip(grid, start, strict=True))
    image = torch.stack([torch.zeros(grid).double(), *torch.meshgrid(rows, columns, indexing="ij")], -1).reshape(-1, 3)
    ids = torch.cat([torch.zeros(text, 3).double(), image])
    angles = torch.cat([ids[:, axis, None] * each for axis, each in enumerate(omegas)], dim=1)
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))


@pytest.fixture
def seen(pack, host_part, monkeypatch) -> list[Tensor]:
    """Rotations that each call of an embedder on a model or ControlNet with CLEAR gave."""
    families = import_module(f"{pack.__name__}.clear_core.families")
    for family in families.FAMILIES:
        monkeypatch.setitem(vars(family), "native_tokens", SIDE**2)
    embedder, given = host_part("model.rope_embedder").PositionEmbedder, []
    own = embedder.forward

    def forward(self: Any, ids: Tensor) -> Tensor:
        out = own(self, ids)
        given.append(out)
        return out

    monkeypatch.setattr(embedder, "forward", forward)
    return given


def watch_sigmas(model: Any) -> list[float]:
    """The noise level of each call of a model."""
    sigmas: list[float] = []

    def watch(executor: Any, x: Tensor, t: Tensor, *args: Any, **extra: Any) -> Tensor:
        assert len(set(t.tolist())) == 1
        sigmas.append(float(t[0]))
        return executor(x, t, *args, **extra)

    model.add_wrapper_with_key("apply_model", "watch", watch)
    return sigmas


def assert_rotations(found: Tensor, wanted: Tensor, batch: int = 1) -> None:
    assert found.shape == (batch, 1, *wanted.shape) and found.dtype == torch.float32
    for each in found[:, 0]:
        assert torch.allclose(each.double(), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "factor"), [("constant", 10.0), ("clipped", 10.0), ("fading", 0.0), ("fading", 3.0)], ids=str
)
def test_each_step_has_the_formulas_rotations(clear_node, run, seen, kind, factor, batch):
    model = clear_node(small(), radius=3, ntk=kind, ntk_factor=factor)
    sigmas = watch_sigmas(model)
    out = run(model, prompt(TEXT), noise(20, 26, batch), steps=3)
    assert torch.isfinite(out).all() and out.shape[0] == batch
    assert len(seen) == len(sigmas) == 3 and sigmas[0] == 1.0 > sigmas[1] > sigmas[2] > 0
    for found, sigma in zip(seen, sigmas, strict=True):
        assert_rotations(found, expected(frequencies(kind, factor, GRID, sigma), TEXT, GRID), batch)
    # The steps differ where, and only where, the base fades.
    assert torch.equal(seen[0], seen[1]) == (kind != "fading")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_off_is_the_model_without_it(clear_node, predict, kind, factor):
    """Factor 1, and the native size (here 130 tokens of 4096) without a factor."""
    model, x = small(), noise(20, 26)
    plain = predict(clear_node(model, radius=3, ntk_factor=1.0), x, 0.6, prompt(TEXT))
    assert torch.equal(predict(clear_node(model, radius=3, ntk=kind, ntk_factor=factor), x, 0.6, prompt(TEXT)), plain)


def test_constant_is_the_larger_base_bit_for_bit_and_the_default(clear_node, predict, host_part):
    from comfy.ldm.flux.layers import EmbedND

    model, x = small(), noise(20, 26)
    scaled = model.clone()
    scaled.add_object_patch(EMBEDDER, EmbedND(128, 10000 * 7.0, list(AXES)))
    by_hand = predict(clear_node(scaled, radius=3, ntk_factor=1.0), x, 0.6, prompt(TEXT))
    for widgets in ({"ntk": "constant"}, {}):
        found = predict(clear_node(model, radius=3, ntk_factor=7.0, **widgets), x, 0.6, prompt(TEXT))
        assert torch.equal(found, by_hand)
    others = [predict(clear_node(model, radius=3, ntk_factor=7.0, ntk=kind), x, 0.6, prompt(TEXT)) for kind in KINDS]
    assert not torch.equal(others[0], others[2])


def test_the_twin_gives_the_hosts_rotations(host, host_part):
    """For a base alone, bit for bit what ``EmbedND`` gives."""
    from comfy.ldm.flux.layers import EmbedND

    module = host_part("model.rope_embedder")
    ids = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) * 256
    for factor in (1.0, 10.0):
        twin = module.rotations(ids, module.RopeStretch("constant", factor).frequencies(10000, AXES))
        theirs = EmbedND(128, 10000 * factor, list(AXES))(ids)
        assert twin.dtype == theirs.dtype and torch.equal(twin, theirs)


@pytest.mark.parametrize("kind", ["clipped", "fading"])
def test_tiles_go_by_the_whole_frame(clear_node, predict, in_tiles, seen, kind):
    factor = 10.0 if kind == "clipped" else 0.0
    model = in_tiles(clear_node(small(), radius=3, ntk=kind, ntk_factor=factor), GRID, TILE)
    predict(model, noise(20, 26), 0.8, prompt(TEXT))
    starts = [(y, x) for y in (0, 4) for x in (0, 5)]
    assert len(seen) == len(starts)
    for found, start in zip(seen, starts, strict=True):
        assert_rotations(found, expected(frequencies(kind, factor, GRID, 0.8), TEXT, TILE, start))


@pytest.mark.parametrize("layout", ["xlabs", "union"])
@pytest.mark.parametrize("kind", ["clipped", "fading"])
@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
def test_controlnets_follow(clear_node, run, load, applied, in_tiles, seen, layout, kind, tiles):
    factor = 10.0 if kind == "clipped" else 0.0
    model = clear_node(small(), radius=3, ntk=kind, ntk_factor=factor, controlnet="on")
    sigmas = watch_sigmas(model)
    if tiles:
        model = in_tiles(model, GRID, TILE)
    run(model, applied(load(layout), prompt(TEXT)), noise(20, 26), steps=2)
    places = [((y, x), TILE) for y in (0, 4) for x in (0, 5)] if tiles else [((0, 0), GRID)]
    assert len(seen) == 2 * len(sigmas) == 4 * len(places) and len(set(sigmas)) == 2
    for call, sigma in enumerate(sigmas):
        start, grid = places[call % len(places)]
        omegas = frequencies(kind, factor, GRID, sigma)
        controls, models = seen[2 * call : 2 * call + 2]
        assert_rotations(controls, expected(omegas, TEXT + (layout == "union"), grid, start))
        assert_rotations(models, expected(omegas, TEXT, grid, start))


def test_chroma_fades_too(host, clear_node, predict, seen):
    model = clear_node(relatives.build_chroma(depth=1, depth_single_blocks=1), radius=3, ntk="fading")
    generator = torch.Generator().manual_seed(2)
    text = conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))
    predict(model, noise(20, 26), 0.8, text)
    assert_rotations(seen[0], expected(frequencies("fading", 0.0, GRID, 0.8), TEXT, GRID))


class Other(torch.nn.Module):
    """Another pack's embedder."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base

    def forward(self, ids: Tensor) -> Tensor:
        return self.base(ids)


@pytest.mark.parametrize(
    ("kind", "factor", "words"),
    [("clipped", 10.0, "10 clipped at 1.43"), ("fading", 0.0, "fading for 1.62 x 1.25 native sides")],
)
def test_another_packs_embedder_is_kept_and_said_once(clear_node, run, seen, kind, factor, words):
    foreign = small().clone()
    foreign.add_object_patch(EMBEDDER, Other(foreign.get_model_object(EMBEDDER)))
    with Recorder() as log:
        out = run(clear_node(foreign, radius=3, ntk=kind, ntk_factor=factor), prompt(TEXT), noise(20, 26))
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and f"it is kept, and ntk_factor {words} is not applied" in lines[0]
    assert torch.equal(out, run(clear_node(foreign, radius=3, ntk_factor=1.0), prompt(TEXT), noise(20, 26)))
    assert seen == []


@pytest.mark.parametrize(
    ("widgets", "set_as", "comes_to"),
    [
        ({}, "ntk auto,", "ntk 1,"),
        ({"ntk": "clipped", "ntk_factor": 10.0}, "ntk 10 clipped,", "ntk 10 clipped at 1.43,"),
        ({"ntk": "fading"}, "ntk auto fading,", "ntk fading for 1.62 x 1.25 native sides,"),
        ({"ntk": "fading", "ntk_factor": 3.0}, "ntk 3 fading,", "ntk fading from 9,"),
    ],
)
def test_info_says_which(clear_node, host_part, pack, seen, widgets, set_as, comes_to):
    info, model = host_part("upscale.info"), clear_node(small(), radius=3, **widgets)
    size = (16 * GRID[0], 16 * GRID[1])
    stage = import_module(f"{pack.__name__}.clear_core.sdedit").Stage(1, size, size, 1.0, 0)
    inputs = host_part("upscale.stage").StageInputs(model, prompt(TEXT), object())
    settings = host_part("upscale.stage").StageSettings()
    assert set_as in info.attention_words(model)
    assert comes_to in info.effect_words(inputs, stage, settings, 1)


def test_a_bad_value_is_refused_in_one_sentence(clear_node):
    with pytest.raises(ValueError, match="ntk is 'linear'; expected one of constant, clipped, fading"):
        clear_node(small(), ntk="linear")
