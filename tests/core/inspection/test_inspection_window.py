"""The window as CLEARInspect draws it, in the picture and by blocks, against the oracle and the drawn pixels."""

from __future__ import annotations

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.tiling.plan import tile_plan

pytest.importorskip("PIL")

from PIL import Image

from clear_core.inspection.block_map import block_map
from clear_core.inspection.canvas import CIRCLE, POOLED, QUERY, TEXT, UNSEEN
from clear_core.inspection.overlay import draw_overlay


def near(pixel: tuple[int, int, int], color: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 40


@pytest.mark.parametrize("picture", [None, Image.new("RGB", (64, 64), (250, 120, 0))], ids=["plain", "picture"])
@pytest.mark.parametrize(("size", "radius"), [((4096, 4096), 16), ((2048, 3072), 32), ((6000, 4000), 8)], ids=str)
def test_the_drawn_circle_is_true_to_scale(size, radius, picture):
    overlay = draw_overlay(size, ClearSpec(radius), picture=picture, width=1000, height=1000)
    assert overlay.scale == pytest.approx(1000 / max(size))
    image, (x, y) = overlay.image, overlay.centre
    assert max(image.size) == 1000
    lines = [
        [place for place in range(image.width) if near(image.getpixel((place, int(y))), CIRCLE)],
        [place for place in range(image.height) if near(image.getpixel((int(x), place)), CIRCLE)],
    ]
    for places, middle in zip(lines, (x, y), strict=True):
        left = [place for place in places if place < middle]
        right = [place for place in places if middle < place]
        # The line's own middle; below the circle the label's border may be of its color too.
        first, last = left[len(left) // 2] if places is lines[0] else left[0] + 1, right[0] + 1
        assert first == pytest.approx(middle - 16 * radius * overlay.scale, abs=2)
        assert last == pytest.approx(middle + 16 * radius * overlay.scale, abs=2)
    assert image.getpixel((int(x), int(y))) == QUERY


def test_the_frame_keeps_its_shape():
    image = draw_overlay((1000, 4000), ClearSpec(8), width=800, height=800).image
    assert image.size == (800, 200)


def test_block_map_is_the_oracles_mask_by_tiles():
    """One pixel a tile: coloured where some query of the tile sees some key of the other."""
    layout, spec = SequenceLayout(64, (32, 48)), ClearSpec(5)
    plan = tile_plan(layout, spec, torch.device("cpu"))
    assert plan.keys.upright and plan.keys.tiles == (2, 6)
    side = 960
    image = block_map(plan, side)
    prefix, band = round(side * 64 / 1600), round(side * 64 / 1600)
    mask = image_rows_mask(range(32), layout, spec, torch.device("cpu")).view(32, 48, -1)
    image_mask = mask[:, :, layout.image_slice].view(32, 48, 32, 48)
    for query in range(12):
        top, left = 16 * (query // 6), 8 * (query % 6)
        for key in range(24):
            tile, half = divmod(key, 2)
            key_top, key_left = 16 * (tile // 6) + 8 * half, 8 * (tile % 6)
            seen = bool(
                image_mask[top : top + 16, left : left + 8, key_top : key_top + 8, key_left : key_left + 8].any()
            )
            y = band + (side - band) * (query + 0.5) / 12
            x = prefix + (side - prefix) * (key + 0.5) / 24
            assert image.getpixel((int(x), int(y))) == (CIRCLE if seen else UNSEEN), (query, key)
    assert image.getpixel((1, 500)) == TEXT == image.getpixel((500, 1))


def test_block_map_shows_pooled_keys():
    plan = tile_plan(SequenceLayout(100, (64, 64)), ClearSpec(4, 4), torch.device("cpu"))
    colors = {color for _, color in block_map(plan, 400).getcolors(2**20)}
    assert {POOLED, TEXT, UNSEEN} <= colors
