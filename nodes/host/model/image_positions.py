"""Position ids of image tokens: found in a sequence, recomputed in float32, and moved to the tile's position.

Source: ``comfy.ldm.chroma.model.Chroma._forward`` and ``comfy.ldm.flux.controlnet.ControlNetFlux.forward``, which make
ids in the dtype of the latent (bfloat16 has no odd integers above 256), ``comfy.ldm.flux.model.Flux.process_img``,
which makes them in float32 and follows ``transformer_options["rope_options"]``,
``comfy.ldm.qwen_image.model.QwenImageTransformer2DModel.process_img``, which counts from the middle, and
``rope_encode`` of ``comfy.ldm.wan.model.WanModel`` and ``comfy.ldm.kandinsky5.model.Kandinsky5``; ComfyUI 0.9.0 to
0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ....clear_core.layout import SequenceLayout
from .family_table import FLUX_EMBEDDER, EmbedderForm
from .tile_frame import FramePart

EXACT = (torch.float32, torch.float64)
"""Dtypes that hold every position of a frame exactly."""


@dataclass(frozen=True)
class HostGrid:
    """Positions as the host lays them out: ``shift + scale * index``, for (rows, columns)."""

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of_options(cls, options: Mapping[str, float]) -> HostGrid:
        """The grid that ``rope_options`` (the stock node ScaleROPE) ask for."""
        return cls(
            (options.get("shift_y", 0.0), options.get("shift_x", 0.0)),
            (options.get("scale_y", 1.0), options.get("scale_x", 1.0)),
        )

    def moved(self, row: int, column: int) -> HostGrid:
        """The same grid from a row and a column on."""
        return HostGrid((self.shift[0] + self.scale[0] * row, self.shift[1] + self.scale[1] * column), self.scale)

    def along(self, axis: int, first: int, count: int, device: torch.device) -> Tensor:
        """(count,) float32 positions along one axis (0: rows) from index ``first`` on."""
        index = torch.arange(first, first + count, dtype=torch.float64)
        return (self.shift[axis] + self.scale[axis] * index).to(device=device, dtype=torch.float32)

    def is_along(self, axis: int, found: Tensor) -> bool:
        """Whether ``found``, (B, rows, columns) in the dtype that the host counts in, has these positions along an
        axis."""
        count = found.shape[1 + axis]
        shift, end = self.shift[axis], self.scale[axis] * (count - 1.0) + self.shift[axis]
        # Eager linspace rounds its steps in a low precision, compiled linspace rounds its result.
        eager = torch.linspace(shift, end, count, dtype=found.dtype, device=found.device)
        compiled = self.along(axis, 0, count, found.device).to(found.dtype)
        shape = (-1, 1) if axis == 0 else (1, -1)
        return any(bool((found == line.reshape(shape)).all()) for line in (eager, compiled))


@dataclass(frozen=True)
class ImageSpan:
    """The image tokens in a sequence of ids: index of the first, and their grid, or None if it is not the host's."""

    start: int
    grid: HostGrid | None


def find_image(
    ids: Tensor,
    layout: SequenceLayout,
    grids: tuple[HostGrid, ...],
    form: EmbedderForm = FLUX_EMBEDDER,
    made_in: torch.dtype | None = None,
) -> ImageSpan | None:
    """Find the image tokens; None if they cannot be identified.

    Args:
        ids: (B, tokens, axes) of text, image and reference tokens.
        layout: Of the call's inputs. Other nodes may have added text tokens, and a model may ignore references.
        grids: Candidates for the host's grid.
        form: How the model asks its embedder.
        made_in: The dtype that the host counts positions in; None is that of ``ids``.
    """
    spare, row = ids.shape[1] - layout.image, form.row
    starts = [start for start in dict.fromkeys((layout.text, spare - layout.reference)) if 0 <= start <= spare]
    for start in starts:
        image = ids[:, start : start + layout.image].unflatten(1, layout.grid)
        for grid in grids:
            # A model that counts from the middle rounds before it subtracts.
            counted = HostGrid((0.0, 0.0), grid.scale) if form.centred else grid
            found = [
                (image[..., row + axis] - (grid.shift[axis] if form.centred else 0)).to(made_in or ids.dtype)
                for axis in (0, 1)
            ]
            if counted.is_along(0, found[0]) and counted.is_along(1, found[1]):
                return ImageSpan(start, grid)
    if spare in (layout.text, layout.text + layout.reference):
        return ImageSpan(layout.text, None)
    return None


def grids_of(
    layout: SequenceLayout,
    part: FramePart | None,
    rope_options: Mapping[str, float] | None,
    form: EmbedderForm,
    steps: tuple[tuple[float, float], ...],
) -> tuple[HostGrid, ...]:
    """What the host's grid may be, the call's options last."""
    if form.centred:
        return (HostGrid((-(layout.grid[0] // 2), -(layout.grid[1] // 2))),)
    plain = tuple(HostGrid(scale=step) for step in steps)
    grids = (*plain, HostGrid.of_options(rope_options)) if rope_options else plain
    if part is None or not form.moves_itself:
        return grids
    return (*grids, *(grid.moved(part.tile.y, part.tile.x) for grid in grids))


def place_image(
    ids: Tensor,
    layout: SequenceLayout,
    part: FramePart | None = None,
    rope_options: Mapping[str, float] | None = None,
    references_follow: bool = False,
    form: EmbedderForm = FLUX_EMBEDDER,
    made_in: torch.dtype | None = None,
    steps: tuple[tuple[float, float], ...] = ((1.0, 1.0),),
) -> Tensor | None:
    """Make the ids of image tokens exact, and move them to the tile's position in the frame.

    A grid of the host's is recomputed in float32. Positions that another node has changed keep their difference from
    the host's and are only moved.

    Args:
        ids: (B, tokens, axes).
        layout: Of the call's inputs.
        part: The tile that the call computes, or None for the whole frame.
        rope_options: Of the call.
        references_follow: Whether the host places reference tokens past the image's last row and column, so that they
            have to be moved past the frame's; if not, they keep their positions.
        form: How the model asks its embedder. One that is centred counts from the image's middle, and text from where
            the longer half ends; one that moves a tile itself is only made exact.
        made_in: The dtype that the host counts positions in; None is that of ``ids``.
        steps: Between positions of rows and columns, as the model may take them.

    Returns:
        (B, tokens, axes) float32, or ``ids`` itself if nothing has to change; None if a tile's image tokens cannot be
        identified.
    """
    grids = grids_of(layout, part, rope_options, form, steps)
    part = None if form.moves_itself else part
    if part is None and (made_in or ids.dtype) in EXACT:
        return ids
    span = find_image(ids, layout, grids, form, made_in)
    if span is None or span.grid is None:
        if part is None:
            return ids
        if span is None:
            return None
    row, column = form.row, form.row + 1
    y, x = (part.tile.y, part.tile.x) if part else (0, 0)
    if part and form.centred:
        y, x = (first + own // 2 - whole // 2 for first, own, whole in zip((y, x), layout.grid, part.grid, strict=True))
    placed = ids.to(torch.promote_types(ids.dtype, torch.float32), copy=True)
    end = span.start + layout.image
    if part and form.centred:
        placed[:, : span.start] += max(part.grid) // 2 - max(layout.grid) // 2
    if part and references_follow:
        placed[:, end:, row] += part.grid[0] - layout.grid[0]
        placed[:, end:, column] += part.grid[1] - layout.grid[1]
    image = placed[:, span.start : end].unflatten(1, layout.grid)
    if span.grid is None:
        image[..., row] += grids[-1].scale[0] * y
        image[..., column] += grids[-1].scale[1] * x
    else:
        image[..., row] = span.grid.along(0, y, layout.grid[0], ids.device)[:, None]
        image[..., column] = span.grid.along(1, x, layout.grid[1], ids.device)
    return placed
