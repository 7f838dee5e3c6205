"""How the rotary base is stretched: each way against its published formula, written out here in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout
from clear_core.effective import Effective
from clear_core.families import FLUX1, ModelShape
from clear_core.inspection.report import report
from clear_core.rope import NTK, RopeStretch, cos_sin, rotations
from clear_core.settings import ClearSettings
from tests.support.inspected import facts, quoted

THETA = 10000
AXES = (16, 56, 56)
FRAMES = [(256, 256), (64, 64), (96, 160), (40, 300), (30, 30)]
SIGMAS = [0.0, 0.25, 0.7, 1.0]


def constant(factor: float, frame: tuple[int, int], sigma: float) -> list[list[float]]:
    return [[(THETA * factor) ** -(2 * i / d) for i in range(d // 2)] for d in AXES]


def clipped(factor: float, frame: tuple[int, int], sigma: float) -> list[list[float]]:
    """I-Max: ``max(1 / (theta * ntk_factor) ** s, 1 / theta ** s / sqrt(N / 64 ** 2))``."""
    slowest = math.sqrt(max(frame[0] * frame[1] / 4096, 1))
    return [
        [max((THETA * factor) ** -(2 * i / d), THETA ** -(2 * i / d) / slowest) for i in range(d // 2)] for d in AXES
    ]


def fading(factor: float, frame: tuple[int, int], sigma: float) -> list[list[float]]:
    """DyPE: ``base_ntk ** (2 * t ** 2)`` with ``base_ntk = (patches / 64) ** (dim / (dim - 2))``; axis 0 as it is."""
    bases = [1.0, *(factor or max(side / 64, 1) ** (56 / 54) for side in frame)]
    grown = [THETA * base ** (2 * sigma**2) for base in bases]
    return [[theta ** -(2 * i / d) for i in range(d // 2)] for theta, d in zip(grown, AXES, strict=True)]


FORMULAS = {"constant": constant, "clipped": clipped, "fading": fading}


def assert_close(found: Iterable[Tensor], expected: Iterable[Iterable[float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float64
        assert ours.tolist() == pytest.approx(list(theirs), rel=1e-12)


@pytest.mark.parametrize("kind", NTK)
@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.5, 10.0])
def test_frequencies_are_the_published_ones(kind: str, frame: tuple[int, int], factor: float) -> None:
    stretch = RopeStretch.of(kind, factor, frame)
    used = factor
    if factor == 0 and kind != "fading":
        used = 10.0 if frame[0] * frame[1] > 8192 else 1.0
    for sigma in SIGMAS:
        assert_close(stretch.frequencies(THETA, AXES, sigma), FORMULAS[kind](used, frame, sigma))


def test_constant_is_bit_for_bit_the_larger_base() -> None:
    """The expression of the host and of diffusers, for the base that the factor gives."""
    for dim, found in zip(AXES, RopeStretch.of("constant", 0, (256, 256)).frequencies(THETA, AXES), strict=True):
        exponents = torch.linspace(0, (dim - 2) / dim, steps=dim // 2, dtype=torch.float64)
        assert torch.equal(found, 1.0 / ((THETA * 10.0) ** exponents))


@pytest.mark.parametrize(
    ("kind", "factor", "frame"),
    [
        *((kind, 1.0, frame) for kind in NTK for frame in FRAMES),
        *((kind, 0.0, frame) for kind in NTK for frame in ((64, 64), (30, 30))),
        ("clipped", 10.0, (64, 64)),
        ("clipped", 10.0, (32, 128)),
    ],
)
def test_off(kind: str, factor: float, frame: tuple[int, int]) -> None:
    stretch = RopeStretch.of(kind, factor, frame)
    assert stretch.is_off and not stretch.fades and (stretch.base_factor, str(stretch)) == (1.0, "1")
    plain = RopeStretch().frequencies(THETA, AXES)
    for sigma in SIGMAS:
        assert all(map(torch.equal, stretch.frequencies(THETA, AXES, sigma), plain))


@pytest.mark.parametrize(
    ("kind", "factor", "frame"),
    [("constant", 10.0, (64, 64)), ("fading", 10.0, (64, 64)), ("fading", 0.0, (64, 65)), ("clipped", 10.0, (64, 65))],
)
def test_not_off(kind: str, factor: float, frame: tuple[int, int]) -> None:
    assert not RopeStretch.of(kind, factor, frame).is_off


def test_clipped_lies_between_the_large_base_and_interpolation() -> None:
    for frame in FRAMES:
        plain, large, found = (
            torch.cat(RopeStretch.of(kind, factor, frame).frequencies(THETA, AXES))
            for kind, factor in (("constant", 1.0), ("constant", 10.0), ("clipped", 10.0))
        )
        slowest = plain / max(1, math.sqrt(frame[0] * frame[1]) / 64)
        assert (found >= slowest * (1 - 1e-12)).all() and (found >= large).all() and (found <= plain).all()


@pytest.mark.parametrize("factor", [0.0, 10.0])
def test_fading_ends_at_the_models_own_base_and_leaves_axis_0(factor: float) -> None:
    stretch = RopeStretch.of("fading", factor, (256, 128))
    plain = RopeStretch().frequencies(THETA, AXES)
    steps = [stretch.frequencies(THETA, AXES, sigma) for sigma in SIGMAS]
    assert all(map(torch.equal, steps[0], plain))
    assert all(torch.equal(step[0], plain[0]) for step in steps)
    for axis in (1, 2):
        for earlier, later in zip(steps[1:], steps, strict=False):
            assert (earlier[axis][1:] < later[axis][1:]).all()
    # Out of the range of a flow model, the nearer end.
    assert all(map(torch.equal, stretch.frequencies(THETA, AXES, 14.6), steps[-1]))
    assert all(map(torch.equal, stretch.frequencies(THETA, AXES, -1.0), plain))


def test_axes_of_size_2_have_one_frequency() -> None:
    for kind in NTK:
        assert torch.cat(RopeStretch.of(kind, 0, (256, 256)).frequencies(THETA, (2, 2, 2))).tolist() == [1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_rotations_turn_by_position_times_frequency(dtype: torch.dtype) -> None:
    ids = torch.randint(0, 256, (2, 5, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    frequencies = RopeStretch.of("fading", 0, (256, 160)).frequencies(THETA, AXES, 0.8)
    found = rotations(ids, frequencies)
    assert found.shape == (2, 1, 5, 64, 2, 2) and found.dtype == torch.float32
    cos, sin = cos_sin(ids, frequencies)
    assert torch.equal(found[:, 0, :, :, 0, 0], cos) and torch.equal(found[:, 0, :, :, 1, 0], sin)
    for batch in range(2):
        for token in range(5):
            angles = [float(p) * w for p, each in zip(ids[batch, token], frequencies, strict=True) for w in each]
            expected = [
                [[math.cos(float(a)), -math.sin(float(a))], [math.sin(float(a)), math.cos(float(a))]] for a in angles
            ]
            assert torch.allclose(found[batch, 0, token].double(), torch.tensor(expected).double(), atol=2e-7, rtol=0)


def of(layout: SequenceLayout, frame: tuple[int, int] | None = None, **settings: Any) -> Effective:
    return Effective.of(ClearSettings(ClearSpec(8), **settings), ModelShape.usual(FLUX1), layout, frame)


@pytest.mark.parametrize("kind", NTK)
def test_a_tile_is_stretched_by_its_frame(kind: str) -> None:
    tile, frame = SequenceLayout(512, (64, 64)), SequenceLayout(512, (256, 160))
    part = of(tile, frame.grid, ntk=kind)
    assert part.stretch == of(frame, ntk=kind).stretch and part.stretch.frame == (256, 160)
    assert of(tile, ntk=kind).stretch.is_off
    assert of(tile, frame.grid, ntk=kind) is part, "kept by its settings; the noise level is no part of it"


@pytest.mark.parametrize("value", ["linear", "", "Constant", None, 1])
def test_a_bad_value_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(ValueError) as error:
        ClearSettings(ClearSpec(8), ntk=value)
    words = str(error.value)
    assert words.startswith("ntk is ") and "constant, clipped, fading" in words and "\n" not in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "10 (automatic)"),
        ({"ntk": "clipped"}, "10 clipped at 4 (automatic)"),
        ({"ntk": "clipped", "ntk_factor": 2.5}, "2.5 clipped at 4 (set)"),
        ({"ntk": "fading"}, "fading for 4 x 4 native sides (automatic)"),
        ({"ntk": "fading", "ntk_factor": 3.0}, "fading from 9 (set)"),
        ({"ntk": "fading", "ntk_factor": 1.0}, "1 (set)"),
    ],
)
def test_what_inspect_says(settings: dict[str, Any], words: str) -> None:
    chosen = ClearSettings(ClearSpec(8), **settings)
    lines = quoted(report(replace(facts(), settings=chosen)))
    assert (lines["ntk factor"], lines["ntk"]) == (words, chosen.ntk)
