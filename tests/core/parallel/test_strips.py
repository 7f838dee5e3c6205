"""Strips: who holds which rows, who needs which, and pictures with their sides swapped."""

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.parallel import split_rows, transposed
from clear_core.parallel.strips import interior_and_border, transfers, widened


@pytest.mark.parametrize("multiple", [1, 2, 4, 5])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_strips_are_even_and_whole(parts, multiple):
    for rows in range(60):
        strips = split_rows(rows, parts, multiple)
        assert len(strips) == parts
        assert [row for strip in strips for row in strip] == list(range(rows))
        assert all(strip.stop in (rows, *range(0, rows, multiple)) for strip in strips)
        cells = -(-rows // multiple)
        sizes = [len(strip) for strip in strips]
        if cells < parts:
            assert all(sizes[:cells]) and not any(sizes[cells:])
            continue
        counted = [-(-size // multiple) for size in sizes]
        assert max(counted) - min(counted) <= 1
        # One cell more than the others is the cut one, if there is one.
        assert max(sizes) == lowest_highest(rows, parts, multiple)


def lowest_highest(rows: int, parts: int, multiple: int) -> int:
    """How low the highest of so many strips can be."""
    sizes = [multiple] * (rows // multiple) + [rows % multiple] * bool(rows % multiple)
    for highest in range(1, rows + 1):
        used, height = 1, 0
        for size in sizes:
            used, height = (used, height + size) if height + size <= highest else (used + 1, size)
        if used <= parts and max(sizes) <= highest:
            return highest
    return 0


def test_the_strips_of_the_documents():
    assert split_rows(22, 4) == (range(0, 5), range(5, 10), range(10, 16), range(16, 22))
    assert split_rows(30, 4, 4) == (range(0, 8), range(8, 16), range(16, 24), range(24, 30))
    assert split_rows(9, 4, 4) == (range(0, 4), range(4, 8), range(8, 9), range(9, 9))
    assert split_rows(0, 2) == (range(0, 0), range(0, 0))


@pytest.mark.parametrize(
    "numbers, message",
    [
        ((-1, 2, 1), "rows is -1; expected a whole number of at least 0."),
        ((4, 0, 1), "parts is 0; expected a whole number of at least 1."),
        ((4, 2, 1.5), "multiple is 1.5; expected a whole number of at least 1."),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        split_rows(*numbers)


@pytest.mark.parametrize("radius", [1, 2, 5, 9, 100])
@pytest.mark.parametrize("rows, parts, multiple", [(22, 4, 1), (3, 5, 1), (30, 4, 4), (7, 1, 1), (9, 3, 5)])
def test_each_strip_gets_exactly_the_rows_within_its_windows(rows, parts, multiple, radius):
    strips = split_rows(rows, parts, multiple)
    spec = ClearSpec(radius)
    moved = transfers(strips, radius)
    assert all(part and sender != receiver for (sender, receiver), part in moved.items())
    for receiver, own in enumerate(strips):
        seen = {there for row in own for there in range(rows) if spec.sees(there - row, 0)}
        got = [row for (_, to), part in moved.items() if to == receiver for row in part]
        assert sorted([*got, *own]) == sorted(seen)
        assert set(widened(own, radius, rows)) == seen
        interior, border = interior_and_border(own, radius, rows)
        alone = [row for row in own if set(widened(range(row, row + 1), radius, rows)) <= set(own)]
        assert list(interior) == alone
        assert sorted([*interior, *(row for part in border for row in part)]) == list(own)
        assert all(border)


@pytest.mark.parametrize("down_factor", [1, 3])
def test_a_transposed_picture_gives_the_transposed_result(down_factor):
    grid, text, reference = (5, 9), 3, 2
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, text + 45 + reference, 16, generator=generator).unbind()
    weight = torch.rand(down_factor, down_factor, generator=generator)
    options = {"spec": ClearSpec(3, down_factor), "reference_tokens": reference, "backend": "dense"}
    expected = clear_attention(q, k, v, grid=grid, spatial_weight=weight, **options)
    (q, swapped), (k, _), (v, _) = (transposed(one, grid, text_tokens=text) for one in (q, k, v))
    assert swapped == (9, 5)
    out = clear_attention(q, k, v, grid=swapped, spatial_weight=weight.T, **options)
    back, again = transposed(out, swapped, text_tokens=text)
    assert again == grid
    torch.testing.assert_close(back, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
def test_any_dimension_can_hold_the_tokens(dim):
    tokens = torch.arange(2 + 12 + 1)
    shape = [1, 1, 1]
    shape[dim] = 15
    swapped, _ = transposed(
        tokens.view(shape).expand([3 if n == 1 else n for n in shape]), (3, 4), text_tokens=2, dim=dim
    )
    wanted = [0, 1, *(2 + 4 * y + x for x in range(4) for y in range(3)), 14]
    lines = swapped.movedim(dim, -1).flatten(0, 1)
    assert lines.tolist() == [wanted] * 9


def test_too_few_tokens_to_transpose_are_named():
    with pytest.raises(ValueError, match="there are 13 tokens, but 2 of text and a grid of 3 x 4 need 14"):
        transposed(torch.zeros(1, 13, 8), (3, 4), text_tokens=2)
