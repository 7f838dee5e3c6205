"""The model's row-major tokens into the kernel's tile order and back: each byte is written once, padding is zeroed.

Only views and copies, no index tensors. Where the grid does not fill its tiles, the whole tiles and the rim are copied
one after the other: padding the image first would copy all of it twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...tiling.order import KEY_TILE_SIDE, TileOrder, query_tile_size


def copy_to_tiles(tokens: Tensor, tiled: Tensor, order: TileOrder) -> None:
    """Row-major (B, heads, h * w, D) into tile order (B, heads, query tiles * 128, D); padding becomes zero."""
    tiles = _as_grid(tiled, order)
    # First, while nothing that autograd follows is in there.
    for axis, length in ((2, order.grid[0]), (4, order.grid[1])):
        _zero_from(tiles, axis, length)
    for image, part in _matching(tokens.unflatten(2, order.grid), tiles):
        part.copy_(image)


def copy_from_tiles(tiled: Tensor, tokens: Tensor, order: TileOrder) -> None:
    """Tile order (B, heads, query tiles * 128, D) into row-major (B, heads, h * w, D); padding is left out."""
    for image, part in _matching(tokens.unflatten(2, order.grid), _as_grid(tiled, order)):
        image.copy_(part)


def _as_grid(tiled: Tensor, order: TileOrder) -> Tensor:
    """Tile order as a view (B, heads, rows, height, columns, 8, D), columns of key tiles.

    The two key tiles of a query tile lie below each other in an upright one, as one tile of double height, and beside
    each other in a lying one, as two columns.
    """
    height, width = query_tile_size(order.upright)
    columns = order.tiles[1] * width // KEY_TILE_SIDE
    return tiled.unflatten(2, (order.tiles[0], columns, height, KEY_TILE_SIDE)).transpose(3, 4)


def _zero_from(tiles: Tensor, axis: int, length: int) -> None:
    """Zeros past the first ``length`` tokens of one axis, which dimension ``axis`` and the next make up together."""
    count, size = tiles.shape[axis : axis + 2]
    whole, rest = divmod(length, size)
    if rest:
        tiles.narrow(axis, whole, 1).narrow(axis + 1, rest, size - rest).zero_()
        whole += 1
    if whole < count:
        tiles.narrow(axis, whole, count - whole).zero_()


def _matching(image: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of one shape, of the image (B, heads, h, w, D) and of its tiles: up to four pairs that cover the image."""
    for y, row, inner_y in _axis_parts(image.shape[2], tiles.shape[3]):
        for x, column, inner_x in _axis_parts(image.shape[3], tiles.shape[5]):
            part = tiles[:, :, row, :inner_y, column, :inner_x]
            yield image[:, :, y, x].unflatten(3, (-1, inner_x)).unflatten(2, (-1, inner_y)), part


def _axis_parts(length: int, size: int) -> Iterator[tuple[slice, slice, int]]:
    """An axis in whole tiles and the rest: its tokens, its tiles, and how many tokens of each tile."""
    whole, rest = divmod(length, size)
    if whole:
        yield slice(0, whole * size), slice(0, whole), size
    if rest:
        yield slice(whole * size, length), slice(whole, whole + 1), rest
