"""How the tiles of a frame get the positions that their tokens have in the frame, for each family in its own way.

Source: ``transformer_options["rope_options"]``, which ``comfy.ldm.lumina.model.NextDiT``,
``comfy.ldm.wan.model.WanModel`` and ``comfy.ldm.kandinsky5.model.Kandinsky5`` follow;
``comfy.patcher_extension.WrappersMP.APPLY_MODEL``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .family import row_of
from .family_table import Step, unit_step
from .notices import Notices
from .picture_model import PictureModel, Placing, picture_model
from .rope_embedder import install_embedder
from .table_positions import install_table
from .tile_frame import KEY as FRAME_PART
from .tile_frame import FramePart

KEY = "clear_tile_positions"
OPTIONS = "rope_options"

REFERENCES = ("ref_latents", "reference_latent")
"""Inputs of a model whose tokens would be moved along with the image's."""


def place_tiles(model: ModelPatcher) -> None:
    """Put on a clone whatever moves a tile's positions to its place in the frame.

    Where a family has no entry, tiles keep the positions that the model gives them.
    """
    picture = picture_model(model)
    if picture.placing is not None:
        PLACERS[picture.placing](model, picture)


def _by_embedder(model: ModelPatcher, picture: PictureModel) -> None:
    host = row_of(model.model)
    if host and host.embedder and hasattr(model.model.diffusion_model, host.embedder.attribute):
        install_embedder(model, wrap_foreign=True)


def _by_options(model: ModelPatcher, picture: PictureModel) -> None:
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    host = row_of(model.model)
    step = host.embedder.step if host and host.embedder else unit_step
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, ShiftedPositions(step))


def _by_table(model: ModelPatcher, picture: PictureModel) -> None:
    install_table(model)


PLACERS: dict[Placing, Callable[[ModelPatcher, PictureModel], None]] = {
    "embedder": _by_embedder,
    "options": _by_options,
    "table": _by_table,
}
"""A new way to move positions is a value of ``Placing`` and an entry here."""


@dataclass(frozen=True)
class ShiftedPositions:
    """The APPLY_MODEL wrapper that asks the model itself to shift the positions of a tile's tokens.

    Attributes:
        step: Between positions, as the model takes them by itself.
    """

    step: Step = unit_step
    notices: Notices = field(default_factory=Notices)

    def __call__(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model."""
        options = transformer_options or {}
        part = options.get(FRAME_PART)
        if part is not None and any(extra.get(name) is not None for name in REFERENCES):
            self.notices.log_once(
                "references",
                "the model would move its reference tokens along with a tile's, so tiles keep the positions that the "
                "model gives them.",
            )
        elif part is not None:
            options = {**options, OPTIONS: self.moved(options.get(OPTIONS), part, executor.class_obj.diffusion_model)}
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)

    def moved(self, asked: dict[str, float] | None, part: FramePart, model: Any) -> dict[str, float]:
        """``rope_options`` that ask for the tile's part of the frame's positions.

        Args:
            asked: What another node asks for. Without, a model takes steps of its own, which it leaves out if it is
                asked for anything (Kandinsky).
        """
        if not asked:
            rows, columns = self.step(model, part.grid[0] * part.grid[1])
            asked = {"scale_y": rows, "scale_x": columns}
        shifted = {
            f"shift_{axis}": asked.get(f"shift_{axis}", 0.0) + asked.get(f"scale_{axis}", 1.0) * first
            for axis, first in (("y", part.tile.y), ("x", part.tile.x))
        }
        return {**asked, **shifted}
