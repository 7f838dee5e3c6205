"""The indices and masks of gathered attention, made once for a layout and kept.

They depend on nothing but the layout, the window, the tile and the device, and a model asks for the same ones in each
of its blocks. Making them takes more operations than the attention itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from .classes import TileClass, query_tile, tile_classes
from .kept import KeptValues

MOST_BYTES = 96 * 2**20
"""Memory in bytes for all plans together; the largest one of a grid of 512 x 512 takes less than 64 MiB."""

# Masks of one plan; those beyond are made in every call.
MOST_MASK_BYTES = 40 * 2**20


@dataclass(frozen=True)
class GatheredKeys:
    """What a plan is made for, besides the layout.

    Attributes:
        spec: Window.
        device: Of the tensors.
        query_rows: Rows of the grid that are queries.
        shared: Whether the text and reference tokens are among the gathered keys of every tile.
        ahead: Number of keys in front of the window's in the mask that every query sees; None leaves the mask to the
            window's own keys (an attention mask of the user's is added to them apart).
    """

    spec: ClearSpec
    device: torch.device
    query_rows: range
    shared: bool
    ahead: int | None


@dataclass(frozen=True, eq=False)
class GatheredClass:
    """The tiles of one class.

    Attributes:
        queries: (tiles, queries) int64, positions in q.
        keys: (tiles, keys) int32, positions in k; text and reference tokens first if they are shared.
        mask: bool (queries, keys of the mask), True if a query sees a key; None if every query sees all.
    """

    tiles: TileClass
    width: int
    made_for: GatheredKeys
    queries: Tensor
    keys: Tensor
    kept_mask: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        if self.tiles.covered:
            return None
        return self.kept_mask if self.kept_mask is not None else _mask(self.tiles, self.width, self.made_for)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        tensors = (self.queries, self.keys, self.kept_mask)
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)


@dataclass(frozen=True, eq=False)
class GatheredPlan:
    """All tiles of a layout: every query in exactly one of them."""

    classes: tuple[GatheredClass, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(one.nbytes for one in self.classes)


PLANS: KeptValues[GatheredPlan] = KeptValues(MOST_BYTES)


def gathered_plan(layout: SequenceLayout, keys: GatheredKeys) -> GatheredPlan:
    """The plan for a layout; shared and never changed."""
    tile = query_tile(keys.device, keys.spec.radius)
    return PLANS.get((layout, keys, tile), lambda: _make(layout, keys, tile))


def _make(layout: SequenceLayout, keys: GatheredKeys, tile: tuple[int, int]) -> GatheredPlan:
    width, device = layout.grid[1], keys.device
    image = layout.image_slice
    # From positions in k to positions in q, which may begin with a later row.
    skipped = keys.query_rows.start * width
    mask_bytes = 0
    # Inference-mode tensors cannot be saved for backward, so kept tensors are built outside that mode.
    with torch.inference_mode(False):
        shared = torch.arange(layout.length if keys.shared else 0, dtype=torch.int32, device=device)
        shared = torch.cat([shared[: image.start], shared[image.stop :]])
        classes: list[GatheredClass] = []
        for tiles in tile_classes(layout.grid, keys.spec, tile, device, keys.query_rows):
            query_offset, key_offset = tiles.offsets(width)
            first = tiles.first[:, None] + layout.text
            window_keys = first.to(torch.int32) + key_offset.to(torch.int32)
            positions = torch.cat([shared.expand(len(first), -1), window_keys], dim=1)
            mask = None if tiles.covered else _mask(tiles, width, keys)
            if mask is not None and mask_bytes + mask.numel() > MOST_MASK_BYTES:
                mask = None
            mask_bytes += 0 if mask is None else mask.numel()
            classes.append(GatheredClass(tiles, width, keys, first + (query_offset - skipped), positions, mask))
    return GatheredPlan(tuple(classes))


def _mask(tiles: TileClass, width: int, keys: GatheredKeys) -> Tensor:
    window = tiles.window(keys.spec)
    return F.pad(window, (keys.ahead, 0), value=True) if keys.ahead else window
