"""A picture cut into strips of rows: who holds which rows, and who needs which rows of whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from ..number_checks import check_number


def split_rows(rows: int, parts: int, multiple: int = 1) -> tuple[range, ...]:
    """The rows of each rank's strip, from top to bottom.

    They are as even as may be, and cut at multiples only: then every pooled cell lies in one strip. With fewer
    multiples than parts the last strips are empty.

    Args:
        rows: Number of rows of the grid, 0 or more.
        parts: Number of strips, 1 or more.
        multiple: In rows, 1 or more; the down factor of the windows.

    Returns:
        ``parts`` ranges of step 1 that cover ``range(rows)``.

    Raises:
        ValueError: A number is out of its range.
    """
    for name, value, least in (("rows", rows, 0), ("parts", parts, 1), ("multiple", multiple, 1)):
        check_number(name, value, least, whole=True)
    cells = -(-rows // multiple)
    each, more = divmod(cells, parts)
    # The last cell may be cut. It comes to a strip with one cell more, and so the highest strip is as low as may be.
    first_with_more = parts - more if each else 0
    sizes = [each + (first_with_more <= part < first_with_more + more) for part in range(parts)]
    bounds = [min(rows, multiple * cell) for cell in accumulate(sizes, initial=0)]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def widened(rows: range, radius: int, height: int) -> range:
    """The rows whose keys the queries of some rows see: those within ``radius - 1`` rows, inside the grid."""
    if not rows:
        return rows
    return range(max(0, rows.start - radius + 1), min(height, rows.stop + radius - 1))


def transfers(strips: Sequence[range], radius: int) -> dict[tuple[int, int], range]:
    """Which rows travel from whom to whom, for any radius, also across several strips.

    Args:
        strips: The rows of each rank.
        radius: Window radius in tokens.

    Returns:
        By (sender, receiver): the sender's rows that the receiver's queries see; pairs without any are left out.
    """
    found: dict[tuple[int, int], range] = {}
    for receiver, own in enumerate(strips):
        seen = widened(own, radius, strips[-1].stop)
        for sender, there in enumerate(strips):
            rows = range(max(seen.start, there.start), min(seen.stop, there.stop))
            if sender != receiver and rows:
                found[sender, receiver] = rows
    return found


def interior_and_border(own: range, radius: int, height: int) -> tuple[range, list[range]]:
    """The rows of a strip whose queries see own rows alone, and those that wait for rows of others.

    Args:
        own: The rows of the strip.
        radius: Window radius in tokens.
        height: Rows of the grid.

    Returns:
        The interior, perhaps empty, and up to two ranges of border rows, none of them empty.
    """
    start = own.start if own.start == 0 else min(own.stop, own.start + radius - 1)
    stop = own.stop if own.stop == height else max(own.start, own.stop - radius + 1)
    if start >= stop:
        return range(own.start, own.start), [own] if own else []
    parts = (range(own.start, start), range(stop, own.stop))
    return range(start, stop), [rows for rows in parts if rows]


def transposed(
    tokens: Tensor, grid: tuple[int, int], *, text_tokens: int = 0, dim: int = -2
) -> tuple[Tensor, tuple[int, int]]:
    """A sequence whose image has its sides swapped, so that a wide picture is cut into strips along its longer side.

    Strips are the cheaper, the fewer tokens lie in one row of the grid. Windows are round, so nothing else changes
    but the pooling weights, which must be swapped as well (``spatial_weight.T``). Swap once before the first block,
    q, k and v alike by their tokens and positions, and back after the last one: ``transposed`` of the result.

    Args:
        tokens: Text, the image row-major, then any other tokens, along ``dim``.
        grid: (h, w) of the image in tokens.
        text_tokens: Tokens before the image.
        dim: The dimension of the tokens; -2 suits (B, heads, L, D) and (B, L, C).

    Returns:
        A copy with the image in the order of its columns, and the grid (w, h).

    Raises:
        ValueError: There are fewer tokens than text and image need.
    """
    height, width = grid
    image = height * width
    length = tokens.shape[dim]
    if length < text_tokens + image:
        raise ValueError(
            f"there are {length} tokens, but {text_tokens} of text and a grid of {height} x {width} need "
            f"{text_tokens + image}; check grid, text_tokens and dim."
        )
    swapped = tokens.clone()
    columns = tokens.narrow(dim, text_tokens, image).unflatten(dim, (height, width))
    # In front of the last of the two dimensions that the image has now, if counted from the end.
    first = dim if dim >= 0 else dim - 1
    swapped.narrow(dim, text_tokens, image).copy_(columns.transpose(first, first + 1).flatten(first, first + 1))
    return swapped, (width, height)
