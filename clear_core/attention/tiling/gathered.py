"""The indices and masks of gathered attention, made once for a layout and kept.

They depend on nothing but the layout, the window, the tile and the device, and a model asks for the same ones in each
of its blocks. Making them takes more operations than the attention itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layout import SequenceLayout
from ...spec import ClearSpec
from .classes import query_tile, tile_classes
from .kept import KeptValues
from .masks import MaskCut, WholeMask, nbytes

MOST_BYTES = 96 * 2**20
"""Memory in bytes for all plans together; the largest one of a grid of 512 x 512 takes less than 64 MiB."""

# Masks of one plan; those beyond are cut out of the whole tile's in every call.
MOST_MASK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class GatheredKeys:
    """What a plan is made for, besides the layout.

    Attributes:
        spec: Window.
        device: Of the tensors.
        query_rows: Rows of the grid that are queries.
        pooled: Number of pooled keys that are gathered for every tile; they stand behind k's own rows.
        shared: Whether the text and reference tokens are gathered for every tile too.
        dtype: Of the masks; None leaves them to the window's own keys as booleans (an attention mask of the user's is
            added to them apart).
    """

    spec: ClearSpec
    device: torch.device
    query_rows: range
    pooled: int
    shared: bool
    dtype: torch.dtype | None


@dataclass(frozen=True, eq=False)
class GatheredClass:
    """The tiles of one class.

    Attributes:
        queries: (tiles, queries) int64, positions in q; a view of the plan's order.
        keys: (tiles, keys) int32, positions in k and behind it: pooled, text, reference, window.
        cut: Which part of the whole tile's mask is theirs; None if every query sees all keys.
    """

    queries: Tensor
    keys: Tensor
    cut: MaskCut | None

    @property
    def mask(self) -> Tensor | None:
        """(queries, keys): what is added to the scores; or bool, True if a query sees a key; None if all see all."""
        return None if self.cut is None else self.cut.mask

    @property
    def nbytes(self) -> int:
        """Memory of what is this class's own."""
        return nbytes(self.keys) + (0 if self.cut is None else self.cut.nbytes)


@dataclass(frozen=True, eq=False)
class GatheredPlan:
    """All tiles of a layout: every query in exactly one of them.

    Attributes:
        order: (image queries,) int64, positions in q, class by class and tile by tile.
        whole: The mask that those of all classes are cut out of.
    """

    order: Tensor
    whole: WholeMask | None
    classes: tuple[GatheredClass, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        whole = 0 if self.whole is None else self.whole.nbytes
        return nbytes(self.order) + whole + sum(one.nbytes for one in self.classes)


PLANS: KeptValues[GatheredPlan] = KeptValues(MOST_BYTES)


def gathered_plan(layout: SequenceLayout, keys: GatheredKeys) -> GatheredPlan:
    """The plan for a layout; shared and never changed."""
    tile = query_tile(keys.device, keys.spec.radius)
    return PLANS.get((layout, keys, tile), lambda: _make(layout, keys, tile))


def _make(layout: SequenceLayout, keys: GatheredKeys, tile: tuple[int, int]) -> GatheredPlan:
    # Inference-mode tensors cannot be saved for backward, so kept tensors are built outside that mode.
    with torch.inference_mode(False):
        width, image = layout.grid[1], layout.image_slice
        tokens = torch.arange(layout.length + keys.pooled, dtype=torch.int32, device=keys.device)
        outside = (tokens[: image.start], tokens[image.stop : layout.length]) if keys.shared else ()
        shared = torch.cat([tokens[layout.length :], *outside])
        classes = tile_classes(layout.grid, keys.spec, tile, keys.device, keys.query_rows)
        covered = all(one.covered for one in classes)
        ahead = len(shared) if keys.dtype is not None else 0
        whole = None if covered else WholeMask.of(classes, keys.spec, ahead, keys.dtype)
        room = MOST_MASK_BYTES - nbytes(None if whole is None else whole.mask)
        # From positions in k to positions in q, which may begin with a later row.
        skipped = keys.query_rows.start * width
        offsets = [one.offsets(width) for one in classes]
        firsts = [one.first[:, None] + layout.text for one in classes]
        queries = [first + (offset - skipped) for first, (offset, _) in zip(firsts, offsets, strict=True)]
        order = torch.cat([one.flatten() for one in queries])
        parts: list[GatheredClass] = []
        in_order = order.split([one.numel() for one in queries])
        for tiles, one, first, (_, offset) in zip(classes, in_order, firsts, offsets, strict=True):
            window = first.to(torch.int32) + offset.to(torch.int32)
            positions = torch.cat([shared.expand(len(first), -1), window], dim=1)
            cut = None if tiles.covered or whole is None else whole.cut(tiles)
            if cut is not None and cut.kept_bytes <= room:
                room -= cut.kept_bytes
                cut = cut.kept()
            parts.append(GatheredClass(one.view(len(first), -1), positions, cut))
        return GatheredPlan(order, whole, tuple(parts))
