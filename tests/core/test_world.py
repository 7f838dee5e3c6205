"""The procedural world: captions describe the drawing, and the codec can represent it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from demo.tiny_flux import codec
from demo.world import Scene, Thing, draw_scene, random_scene
from demo.world.scene import COLOURS, GROUNDS, SHAPES, TEXTURES, TIMES

BALL = Thing("big", "red", "plain", "ball", "left")
SCENE = Scene("meadow", "day", None, (BALL,), detail=3)


def random_scenes(count: int) -> list[Scene]:
    return [random_scene(np.random.default_rng((5, i))) for i in range(count)]


def test_caption_names_everything():
    scene = Scene("sea", "night", "right", (BALL, Thing("small", "blue", "dotted", "ring", "right")))
    assert scene.caption == "a big red plain ball left, a small blue dotted ring right, sea night, moon right"


def test_scene_is_drawn_the_same_twice_and_in_range():
    for scene in random_scenes(4):
        first = draw_scene(scene, 64, 96)
        assert first.shape == (64, 96, 3) and first.dtype == np.float32
        assert first.min() >= 0 and first.max() <= 1
        np.testing.assert_array_equal(first, draw_scene(scene, 64, 96))


@pytest.mark.parametrize(
    "change",
    [
        *({"ground": g} for g in GROUNDS[1:]),
        *({"time": t} for t in TIMES[1:]),
        {"light": "left"},
        *({"things": (replace(BALL, colour=c),)} for c in COLOURS[1:]),
        *({"things": (replace(BALL, texture=t),)} for t in TEXTURES[1:]),
        *({"things": (replace(BALL, shape=s),)} for s in SHAPES[1:]),
        {"things": (replace(BALL, size="small"),)},
        {"things": (replace(BALL, place="right"),)},
    ],
    ids=str,
)
def test_every_word_shows(change: dict[str, object]):
    other = replace(SCENE, **change)
    assert other.caption != SCENE.caption
    difference = np.abs(draw_scene(other, 128, 128) - draw_scene(SCENE, 128, 128)).max(axis=2)
    assert (difference > 0.1).mean() > 0.004


@pytest.mark.parametrize("place, half", [("left", np.s_[:, 64:]), ("right", np.s_[:, :64])])
def test_place_is_where_the_thing_is(place: str, half: tuple[slice, slice]):
    empty = draw_scene(replace(SCENE, things=()), 128, 128)
    drawn = draw_scene(replace(SCENE, things=(replace(BALL, size="small", place=place),)), 128, 128)
    np.testing.assert_array_equal(drawn[half], empty[half])
    assert np.abs(drawn - empty).max() > 0.2


def test_layout_scales_with_the_picture():
    scene = random_scenes(1)[0]
    small = draw_scene(replace(scene, ground="snow"), 256, 256)
    large = draw_scene(replace(scene, ground="snow"), 512, 512).reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 0.02


def test_codec_basis_is_orthonormal():
    rows = codec.basis(torch.float64).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_latents_survive_a_round_trip(dtype: torch.dtype, tolerance: float):
    z = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    again = codec.encode(codec.decode(z))
    torch.testing.assert_close(again, z, rtol=0, atol=tolerance * 60)


@pytest.mark.parametrize("size", [(160, 192), (256, 256), (512, 384)], ids=str)
def test_codec_holds_the_world(size: tuple[int, int]):
    pictures = torch.stack([torch.from_numpy(draw_scene(s, *size)).permute(2, 0, 1) for s in random_scenes(8)])
    error = (codec.decode(codec.encode(pictures)) - pictures).square().mean(dim=(1, 2, 3))
    assert error.max() < 10**-3.2, "below 32 dB a picture shows its blocks"


def test_codec_of_flat_colour_is_exact():
    picture = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 16, 24)
    torch.testing.assert_close(codec.decode(codec.encode(picture)), picture, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 4, 16, 16), (3, 16, 16)], ids=str)
def test_codec_refuses_other_shapes(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected \(batch, 3"):
        codec.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \(batch, 16"):
        codec.decode(torch.zeros(shape))
