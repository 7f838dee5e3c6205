"""Positions that a model takes from a table (SD3): of pictures longer than it, and of a tile in its frame.

Source: ``comfy.ldm.modules.diffusionmodules.mmdit.MMDiT.cropped_pos_embed``, which crops the middle of ``pos_embed``
and asserts past its end, exchanged by ``ModelPatcher.add_object_patch``;
``comfy.patcher_extension.WrappersMP.APPLY_MODEL``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ....clear_core.position_table import PositionTable
from .tile_frame import KEY as FRAME_PART
from .tile_frame import FramePart

KEY = "clear_table_positions"
CROP = "diffusion_model.cropped_pos_embed"


def table_side(diffusion_model: torch.nn.Module) -> int | None:
    """Tokens along a side of a model's table of positions; None if it has none."""
    side = getattr(diffusion_model, "pos_embed_max_size", None)
    return side if isinstance(side, int) and getattr(diffusion_model, "pos_embed", None) is not None else None


def read_table(diffusion_model: torch.nn.Module) -> PositionTable:
    """The table of a model, read once.

    Raises:
        ValueError: It is not the formula of sines and cosines.
    """
    stored: Any = diffusion_model.pos_embed
    kept = _tables.get(diffusion_model)
    if kept is None or kept[0]() is not stored:
        kept = _tables[diffusion_model] = ref(stored), PositionTable.read(stored.detach()).to(torch.device("cpu"))
    return kept[1]


_tables: WeakKeyDictionary[torch.nn.Module, tuple[ref[Tensor], PositionTable]] = WeakKeyDictionary()


def is_formula(diffusion_model: torch.nn.Module) -> bool:
    """Whether a model's table is one, so that longer sides than its own can be spread over it."""
    try:
        read_table(diffusion_model)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class TablePositions:
    """Stands in for the host's ``cropped_pos_embed`` on a clone.

    What fits the table has what the host gives it; of a frame that fits, a tile has its part. A call that is longer
    than the table is spread over the table's native part, with positions between its places.

    Attributes:
        own: What the clone had before.
        inner: The model.
        cells: Side of a token in latent cells.
    """

    own: Callable[..., Tensor]
    inner: torch.nn.Module
    cells: int

    def __call__(self, sides: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """(1, tokens, width) positions of a latent of ``sides`` cells.

        Raises:
            ValueError: The latent is longer than the table, and the table is no formula.
        """
        part, side = _part.get(), table_side(self.inner) or 0
        grid = ((sides[0] + 1) // self.cells, (sides[1] + 1) // self.cells)
        if max(grid) > side:
            try:
                table = read_table(self.inner)
            except ValueError as error:
                raise ValueError(
                    f"the latent is {sides[1]} x {sides[0]} cells, but the model has positions for "
                    f"{side * self.cells} a side, and {error}; make a smaller picture, or enlarge it in tiles with "
                    "CLEAR Upscale."
                ) from error
            table = table.to(device or self.inner.pos_embed.device)  # type: ignore[union-attr, arg-type]
            return table.at(*table.spread(grid))
        if part is None or max(part.grid) > side:
            return self.own(sides, device=device)
        frame = self.own((part.grid[0] * self.cells, part.grid[1] * self.cells), device=device).unflatten(1, part.grid)
        tile = part.tile
        return frame[:, tile.y : tile.y + tile.height, tile.x : tile.x + tile.width].flatten(1, 2)


def install_table(model: ModelPatcher) -> None:
    """Put :class:`TablePositions` on a clone, if its model has a table; a second call changes nothing."""
    inner = model.model.diffusion_model
    if table_side(inner) is None or not hasattr(inner, "cropped_pos_embed"):
        return
    own = model.get_model_object(CROP)
    if not isinstance(own, TablePositions):
        model.add_object_patch(CROP, TablePositions(own, inner, inner.x_embedder.patch_size[0]))
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, told_of_tile)


# The table's function gets the sides of the latent alone.
_part: ContextVar[FramePart | None] = ContextVar("clear_table_part", default=None)


def told_of_tile(executor: WrapperExecutor, *args: Any, **extra: Any) -> Tensor:
    """The APPLY_MODEL wrapper that tells the table which tile a call computes."""
    options = extra.get("transformer_options") or next((each for each in args[5:6] if each), {})
    token = _part.set(options.get(FRAME_PART))
    try:
        return executor(*args, **extra)
    finally:
        _part.reset(token)
