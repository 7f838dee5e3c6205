"""A table of positions: its formula is found, continued past its end, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from clear_core.position_table import PositionTable


def formula(count: int, width: int, step: float, first: float = 0.0) -> torch.Tensor:
    """(1, count * count, width) by the published formula, written anew."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    table = torch.empty(count, count, width, dtype=torch.float64)
    quarter = width // 4
    for index in range(count):
        angles = (first + step * index) * rates
        table[:, index, :quarter], table[:, index, quarter : 2 * quarter] = angles.sin(), angles.cos()
        table[index, :, 2 * quarter : 3 * quarter], table[index, :, 3 * quarter :] = angles.sin(), angles.cos()
    return table.flatten(0, 1)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("side", "step"), [(192, 1 / 3), (48, 1 / 6), (32, 2.0)])
def test_the_formula_goes_on_past_the_table(side: int, step: float, dtype: torch.dtype):
    table = formula(side, 64, step).to(dtype)
    found = PositionTable.read(table)
    assert found.side == side and found.step == pytest.approx(step, rel=1e-4)
    longer = side + 33
    positions = found.at(found.middle(longer), found.middle(side + 8))
    assert positions.shape == (1, longer * (side + 8), 64) and positions.dtype == dtype
    expected = formula(longer, 64, step, first=step * ((side - longer) // 2)).unflatten(1, (longer, longer))
    start = (side - side - 8) // 2 - (side - longer) // 2
    expected = expected[:, :, start : start + side + 8]
    assert (positions.double() - expected.flatten(1, 2)).abs().max() < 2 * torch.finfo(dtype).eps + 1e-4


@pytest.mark.parametrize("grid", [(5, 8), (8, 8), (3, 4)], ids=str)
def test_within_the_table_it_is_the_stored_one(grid: tuple[int, int]):
    stored = (formula(8, 32, 1.0) + 1e-3 * torch.rand(8, generator=torch.Generator().manual_seed(0)).repeat(4)).float()
    found = PositionTable.read(stored)
    top, left = (8 - grid[0]) // 2, (8 - grid[1]) // 2
    cropped = stored.unflatten(1, (8, 8))[:, top : top + grid[0], left : left + grid[1]].flatten(1, 2)
    assert torch.equal(found.at(found.middle(grid[0]), found.middle(grid[1])), cropped)


def test_places_between_those_of_the_table():
    found = PositionTable.read(formula(8, 32, 0.5))
    halves = found.at(torch.arange(0, 8, 0.5), torch.arange(0, 8, 0.5))
    torch.testing.assert_close(halves, formula(16, 32, 0.25), rtol=0, atol=1e-6)


def test_a_longer_grid_is_spread():
    found = PositionTable.read(formula(8, 32, 1.0))
    rows, columns = found.spread((16, 8))
    assert rows[0].item() == -0.25 and rows[-1].item() == 7.25 and (rows.diff() == 0.5).all()
    assert (columns.diff() == 0.5).all() and columns.mean().item() == rows.mean().item() == 3.5
    assert torch.equal(found.at(*found.spread((8, 8))), found.at(torch.arange(8), torch.arange(8)))


@pytest.mark.parametrize(("side", "step", "native"), [(192, 1 / 3, 64), (384, 1 / 6, 64), (32, 2.0, 32)])
def test_a_longer_grid_spans_the_native_part(side: int, step: float, native: int):
    """Of SD3's tables the middle 64 tokens, 1024 px."""
    found = PositionTable.read(formula(side, 8, step))
    rows, _ = found.spread((2 * side, side))
    assert found.native == native
    assert rows[-1].item() - rows[0].item() == pytest.approx(native * (1 - 1 / (2 * side)))
    assert rows.mean().item() == pytest.approx((side - 1) / 2)


def learned(side: int = 8, width: int = 32) -> torch.Tensor:
    return torch.randn(1, side * side, width, generator=torch.Generator().manual_seed(0))


def mixed(side: int = 8, width: int = 32) -> torch.Tensor:
    """The formula but for one place."""
    table = formula(side, width, 1.0).float()
    table[0, 27] += 0.05
    return table


@pytest.mark.parametrize("table", [learned(), mixed(), torch.zeros(1, 64, 32)], ids=["learned", "mixed", "zeros"])
def test_another_table_is_refused(table: torch.Tensor):
    with pytest.raises(
        ValueError, match="is not the formula of sines and cosines, but up to .* so there are no positions between"
    ):
        PositionTable.read(table)


def test_what_is_no_square_is_refused():
    with pytest.raises(ValueError, match=r"has shape \(1, 60, 32\); expected \(1, side \* side, width\)"):
        PositionTable.read(torch.zeros(1, 60, 32))
