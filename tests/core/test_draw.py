"""The picture of the window shows exactly what the oracle's mask lets a query see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask

pytest.importorskip("PIL")

from clear_core.inspection.canvas import POOLED, QUERY, REFERENCE, SUMMARISED, TEXT, UNSEEN, WINDOW
from clear_core.inspection.window_figure import draw_window, place_grid


def nearest(pixel: tuple[int, int, int], palette: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    return min(palette, key=lambda color: sum((a - b) ** 2 for a, b in zip(color, pixel, strict=True)))


def token_color(image: Any, place: Any, y: int, x: int) -> tuple[int, int, int]:
    """Color of most of a token's corners: circle and dots cover the others."""
    corners = [place.point(y + b, x + a) for b in (0.2, 0.8) for a in (0.2, 0.8)]
    seen = [nearest(image.getpixel((int(a), int(b))), (QUERY, WINDOW, UNSEEN, SUMMARISED)) for a, b in corners]
    return max(seen, key=seen.count)


@pytest.mark.parametrize(
    ("grid", "spec", "query"),
    [
        pytest.param((21, 21), ClearSpec(5), None, id="square"),
        pytest.param((11, 26), ClearSpec(8), (1, 24), id="corner"),
        pytest.param((26, 9), ClearSpec(4, 4), (13, 4), id="tall-pooled"),
        pytest.param((10, 20), ClearSpec(1), (9, 0), id="radius-1"),
        pytest.param((9, 12), ClearSpec(50), (4, 4), id="covered"),
    ],
)
def test_colors_are_the_oracles_mask(grid: tuple[int, int], spec: ClearSpec, query: tuple[int, int] | None) -> None:
    layout = SequenceLayout(7, grid)
    image = draw_window(layout, spec, query=query, width=800)
    place = place_grid(grid, 800)
    y, x = query or (grid[0] // 2, grid[1] // 2)
    mask = image_rows_mask(range(y, y + 1), layout, spec, torch.device("cpu"))[x]
    window = mask[layout.image_slice].reshape(grid)
    far = SUMMARISED if spec.pools else UNSEEN
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = QUERY if (row, column) == (y, x) else WINDOW if window[row, column] else far
            assert token_color(image, place, row, column) == expected, (row, column)


@pytest.mark.parametrize(
    ("layout", "spec", "present", "absent"),
    [
        pytest.param(SequenceLayout(9, (12, 12)), ClearSpec(3), {TEXT}, {POOLED, REFERENCE}, id="text"),
        pytest.param(SequenceLayout(0, (12, 12)), ClearSpec(3), set(), {TEXT, POOLED, REFERENCE}, id="nothing-else"),
        pytest.param(SequenceLayout(9, (12, 12), 4), ClearSpec(3, 5), {TEXT, POOLED, REFERENCE}, set(), id="all"),
    ],
)
def test_parts_of_the_sequence(layout: SequenceLayout, spec: ClearSpec, present: set[Any], absent: set[Any]) -> None:
    colors = {color for _, color in draw_window(layout, spec).getcolors(2**24)}
    assert present <= colors
    assert not absent & colors


@pytest.mark.parametrize("grid", [(1, 1), (1, 700), (512, 512)], ids=str)
def test_any_grid_fits_the_width_asked_for(grid: tuple[int, int]) -> None:
    image = draw_window(SequenceLayout(512, grid), ClearSpec(8, 4), width=600)
    assert image.width == 600
    assert QUERY in {color for _, color in image.getcolors(2**24)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"query": (8, 0)}, r"query is \(8, 0\)", id="query"),
        pytest.param({"width": 100}, "width is 100", id="width"),
    ],
)
def test_refuses_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_window(SequenceLayout(1, (8, 8)), ClearSpec(2), **arguments)
