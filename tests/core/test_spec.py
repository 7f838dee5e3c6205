"""What may be asked for, and how a sequence is laid out."""

import dataclasses

import pytest

from clear_core import ClearSpec, SequenceLayout, token_grid


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
@pytest.mark.parametrize("name", ["radius", "down_factor"])
def test_spec_names_the_bad_value(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        ClearSpec(**{"radius": 8, name: value})


def test_an_overview_is_on_or_off():
    with pytest.raises(ValueError, match="overview is 1; expected True or False"):
        ClearSpec(8, 4, 1)
    assert str(ClearSpec(8, 4, True)) == "radius 8, overview 4 x 4"


def test_spec_is_immutable_and_hashable():
    spec = ClearSpec(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.radius = 16
    assert {spec: 1}[ClearSpec(8, 1)] == 1


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 1)], ids=str)
@pytest.mark.parametrize("radius", range(1, 8))
def test_covers_means_that_opposite_corners_see_each_other(grid, radius):
    farthest = (grid[0] - 1) ** 2 + (grid[1] - 1) ** 2
    assert ClearSpec(radius).covers(grid) == (farthest < radius**2)


@pytest.mark.parametrize(
    "length, grid, reference, message",
    [
        (10, (3, 4), 0, "at least 12"),
        (12, (3, 4), 1, "at least 13"),
        (12, (0, 4), 0, "grid height is 0"),
        (12, (3, 4.0), 0, "grid width is 4.0"),
        (12, (3, True), 0, "grid width is True"),
        (12, 12, 0, "grid is 12"),
        (12, (3, 4, 1), 0, r"grid is \(3, 4, 1\)"),
        (12, (3, 4), -1, "reference_tokens is -1"),
    ],
)
def test_layout_names_the_bad_value(length, grid, reference, message):
    with pytest.raises(ValueError, match=message):
        SequenceLayout.of(length, grid, reference)


def test_layout_parts_add_up():
    layout = SequenceLayout.of(5 + 12 + 2, (3, 4), 2)
    assert (layout.text, layout.image, layout.reference, layout.length) == (5, 12, 2, 19)
    assert layout.image_slice == slice(5, 17)


def test_cells_cut_by_the_border_count():
    assert ClearSpec(5, 4).cells((9, 8)) == (3, 2)
    assert ClearSpec(5).cells((9, 8)) == (0, 0)
    assert ClearSpec(5, overview=True).cells((9, 8)) == (9, 8)


def test_token_grid_pads_odd_latents():
    assert token_grid(128, 127) == (64, 64)
