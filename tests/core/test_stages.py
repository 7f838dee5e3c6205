"""The plan from a picture to its enlargement, and the padding to whole tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clear_core.sdedit import guided_stages, plan_stages, reflect_to


@pytest.mark.parametrize(
    ("upscale_by", "factors"),
    [
        (1.0, [1.0]),
        (1.5, [1.5]),
        (2.0, [2.0]),
        (2.01, [2.01**0.5, 2.01]),
        (3.0, [3**0.5, 3.0]),
        (4.0, [2.0, 4.0]),
        (8.0, [2.0, 4.0, 8.0]),
    ],
    ids=str,
)
def test_automatic_stages_enlarge_at_most_twice_each(upscale_by, factors):
    stages = plan_stages(512, 768, upscale_by=upscale_by)
    assert [stage.size for stage in stages] == [(round(512 * f), round(768 * f)) for f in factors]
    source = (512, 768)
    for stage in stages:
        assert stage.source == source
        assert stage.size[0] / source[0] <= 2.0 and stage.size[1] / source[1] <= 2.0
        source = stage.size


@pytest.mark.parametrize(
    ("size", "upscale_by", "final", "padded"),
    [
        ((496, 1520), 2.0, (992, 3040), (992, 3040)),
        ((1000, 1000), 2.0, (2000, 2000), (2000, 2000)),
        ((768, 3072), 2.0, (1536, 6144), (1536, 6144)),
        ((333, 501), 1.7, (566, 852), (576, 864)),
        ((1, 1), 1.0, (1, 1), (16, 16)),
    ],
    ids=str,
)
def test_sizes_are_padded_to_whole_tokens(size, upscale_by, final, padded):
    stage = plan_stages(*size, upscale_by=upscale_by)[-1]
    assert stage.size == final and stage.padded == padded
    assert stage.grid == (padded[0] // 16, padded[1] // 16) and stage.tokens == padded[0] * padded[1] // 256


@pytest.mark.parametrize(
    ("upscale_by", "stages", "listed", "expected"),
    [
        (2.0, 0, "0.7, 0.5", [0.5]),
        (4.0, 0, "0.7, 0.5", [0.7, 0.5]),
        (8.0, 0, "0.7, 0.5", [0.7, 0.5, 0.5]),
        (4.0, 0, "0.9,0.8,0.7", [0.9, 0.8]),
        (4.0, 0, "", [0.5, 0.5]),
        (2.0, 3, " 1 ", [1.0, 1.0, 1.0]),
    ],
    ids=str,
)
def test_strengths(upscale_by, stages, listed, expected):
    planned = plan_stages(64, 64, upscale_by=upscale_by, stages=stages, denoise=0.5, stage_denoise=listed)
    assert [stage.denoise for stage in planned] == expected


def test_stages_have_their_own_seeds():
    seeds = [stage.seed for stage in plan_stages(64, 64, upscale_by=8.0, seed=2**64 - 2)]
    assert seeds == [2**64 - 2, 2**64 - 1, 0]


@pytest.mark.parametrize(
    ("size", "upscale_by", "guide", "strength", "expected"),
    [
        ((1024, 1024), 4.0, "auto", "1.0", [None, None]),
        ((1024, 1024), 4.01, "auto", "1.0", [None, None, ("shift", 1.0, 1)]),
        ((512, 1200), 4.0, "auto", "0.5", [None, ("shift", 0.5, 1)]),
        ((1024, 1024), 8.0, "auto", "0", [None, None, None]),
        ((64, 64), 8.0, "off", "1.0", [None, None, None]),
        ((64, 64), 8.0, "shift", "0, 1, 0.5", [None, ("shift", 1.0, 1), ("shift", 0.5, 1)]),
        ((64, 64), 4.0, "decay", "2", [("decay", 2.0, 1), ("decay", 2.0, 1)]),
        ((64, 64), 2.0, "constant", "1", [("constant", 1.0, 1)]),
        ((64, 64), 4.0, "decay", "", [("decay", 1.0, 1), ("decay", 1.0, 1)]),
    ],
    ids=str,
)
def test_guides(size, upscale_by, guide, strength, expected):
    planned = guided_stages(plan_stages(*size, upscale_by=upscale_by), guide, strength)
    found = [stage.guide and (stage.guide.schedule, stage.guide.strength, stage.guide.level) for stage in planned]
    assert found == expected


@pytest.mark.parametrize(
    ("upscale_by", "level"), [(1.0, 1), (1.5, 1), (2.0, 1), (2.5, 2), (4.0, 2), (4.2, 3), (8.0, 3)], ids=str
)
def test_a_guides_blocks_are_as_wide_as_the_enlargement(upscale_by, level):
    for size in ((333, 501), (64, 64)):
        (stage,) = guided_stages(plan_stages(*size, upscale_by=upscale_by, stages=1), "decay", "1")
        assert stage.guide is not None and stage.guide.level == level


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"upscale_by": 0.9}, ["upscale_by", "0.9", "1 to 8"]),
        ({"upscale_by": float("nan")}, ["upscale_by", "nan"]),
        ({"stages": -1}, ["stages", "-1"]),
        ({"denoise": 0.0}, ["denoise", "0"]),
        ({"denoise": 1.5}, ["denoise", "1.5"]),
        ({"upscale_by": 4.0, "stage_denoise": "0.7; 0.5"}, ["stage_denoise", "0.7; 0.5", "commas"]),
        ({"upscale_by": 4.0, "stage_denoise": "0.7,,0.5"}, ["stage_denoise", "commas"]),
        ({"upscale_by": 4.0, "stage_denoise": "0.7, 2"}, ["stage_denoise", "0.7, 2"]),
        ({"upscale_by": 4.0, "stage_denoise": "nan"}, ["stage_denoise"]),
    ],
    ids=str,
)
def test_refuses_values_in_one_sentence(values, words):
    with pytest.raises(ValueError) as refused:
        plan_stages(64, 64, **values)
    sentence = str(refused.value)
    assert all(word in sentence for word in words) and "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize(
    ("guide", "strength", "words"),
    [
        ("on", "1", ["guide", "'on'", "auto, off, decay, shift, constant"]),
        ("decay", "3", ["guide_strength", "'3'", "0 to 2"]),
        ("off", "1; 0", ["guide_strength", "1; 0", "commas"]),
        ("auto", "nan", ["guide_strength", "nan"]),
    ],
)
def test_refuses_a_guide_in_one_sentence(guide, strength, words):
    with pytest.raises(ValueError) as refused:
        guided_stages(plan_stages(64, 64), guide, strength)
    sentence = str(refused.value)
    assert all(word in sentence for word in words) and "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize(("size", "target"), [((5, 7), (8, 16)), ((16, 32), (16, 32)), ((3, 1), (16, 16))], ids=str)
def test_padding_reflects(size, target):
    pictures = torch.rand(2, *size, 3)
    padded = reflect_to(pictures, target)
    expected = np.pad(pictures.numpy(), ((0, 0), (0, target[0] - size[0]), (0, target[1] - size[1]), (0, 0)), "reflect")
    assert torch.equal(padded, torch.from_numpy(expected))
