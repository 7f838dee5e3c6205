"""Tiles inside every denoising step: the model sees one tile at a time, the sampler sees the whole frame.

Source: ``comfy.patcher_extension.WrappersMP.CALC_COND_BATCH`` and ``PREPARE_SAMPLING``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.sdedit import Tile, TileLayout
from ..model.rope_embedder import install_embedder
from ..model.tile_frame import KEY, FramePart
from .crop_conditioning import Cond, crop_cond


@dataclass
class TiledModel:
    """The wrappers that let one sampling run call its model tile by tile.

    Attributes:
        layout: Tiles over the frame.
        on_tile: Called after every tile with (tiles done, tiles) of this call; what it raises ends the run.
        controls: Cropped ControlNets of this run.
    """

    layout: TileLayout
    on_tile: Callable[[int, int], None]
    controls: dict[Any, Any] = field(default_factory=dict)

    def install(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of ``model`` that runs in tiles."""
        clone = model.clone()
        install_embedder(clone, wrap_foreign=True)
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.predict)
        clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.prepare)
        return clone

    def prepare(
        self, executor: Callable[..., Any], model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Let the host make room for a tile, not for the frame."""
        rows, columns = self.layout.tiles[0].latents
        shape = [*noise_shape[:2], rows.stop - rows.start, columns.stop - columns.start]
        return executor(model, shape, *args, **kwargs)

    def predict(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: list[list[Cond] | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """One prediction for every list of conditionings, (B, C, H, W), blended from the tiles'."""
        predicted = [torch.zeros_like(x_in) for _ in conds]
        for done, tile in enumerate(self.layout.tiles, start=1):
            rows, columns = tile.latents
            weight = self.layout.weight(tile).to(x_in)
            parts = executor(
                model,
                [self.crop(cond, tile, x_in) for cond in conds],
                x_in[..., rows, columns],
                timestep,
                self.options_of(tile, model_options),
            )
            for whole, part in zip(predicted, parts, strict=True):
                whole[..., rows, columns] += part * weight
            self.on_tile(done, len(self.layout.tiles))
        return predicted

    def crop(self, conds: list[Cond] | None, tile: Tile, frame: Tensor) -> list[Cond] | None:
        if conds is None:
            return None
        cropped = [crop_cond(cond, tile, frame, self.controls) for cond in conds]
        return [cond for cond in cropped if cond is not None]

    def options_of(self, tile: Tile, model_options: dict[str, Any]) -> dict[str, Any]:
        """The model options of one tile's calls, which say where it lies."""
        options = {**model_options.get("transformer_options", {}), KEY: FramePart(self.layout.grid, tile)}
        return {**model_options, "transformer_options": options}
