"""Tiles inside every denoising step: the model sees one tile at a time, the sampler sees the whole frame.

Source: ``comfy.patcher_extension.WrappersMP.CALC_COND_BATCH`` and ``PREPARE_SAMPLING``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.sdedit import Tile, TileLayout
from ..crop.crop_conditioning import Cond, crop_cond
from ..crop.crop_patches import crop_patches
from ..crop.crop_picture import PictureCrop
from ..model.devices import Devices
from ..model.tile_frame import KEY, FramePart, TileRun
from ..model.tile_positions import place_tiles
from ..parallel.deal import Call, dealing_devices, dealt
from .tile_state import TileState


@dataclass
class TiledModel:
    """The wrappers that let one sampling run call its model tile by tile.

    Attributes:
        layout: Tiles over the frame.
        on_tile: Called after every tile with (tiles done, tiles) of this call; an exception from it ends the run.
        controls: Cropped ControlNets and controls inside the model's layers, of this run.
        state: What other nodes keep from one call of this run to the next.
        run: What the model is told of this run.
    """

    layout: TileLayout
    on_tile: Callable[[int, int], None]
    controls: dict[Any, Any] = field(default_factory=dict)
    state: TileState = field(default_factory=TileState)
    run: TileRun = field(default_factory=TileRun)

    def install(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of ``model`` that runs in tiles."""
        clone = model.clone()
        place_tiles(clone)
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.predict)
        # What other nodes do once for each evaluation belongs to a tile's (EasyCache decides there anew).
        others = clone.wrappers[WrappersMP.CALC_COND_BATCH]
        clone.wrappers[WrappersMP.CALC_COND_BATCH] = {KEY: others.pop(KEY), **others}
        clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.prepare)
        return clone

    def prepare(
        self, executor: Callable[..., Any], model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Begin a run, and make the host reserve memory for a tile, not for the frame."""
        self.controls.clear()
        self.state, self.run = TileState(self.state.notices), TileRun()
        rows, columns = self.layout.tiles[0].latents
        shape = [*noise_shape[:-2], rows.stop - rows.start, columns.stop - columns.start]
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
        """Blend the tiles' predictions: one latent of the frame for each list of conditionings."""
        predicted = [torch.zeros_like(x_in) for _ in conds]
        tiles = self.layout.tiles
        self.state.begin_step(tiles[0], model, model_options)
        try:
            predictions = self.predictions(executor, model, conds, x_in, timestep, model_options)
            for done, (tile, parts) in enumerate(predictions, start=1):
                rows, columns = tile.latents
                weight = self.layout.weight(tile).to(x_in)
                for whole, part in zip(predicted, parts, strict=True):
                    whole[..., rows, columns] += part * weight
                self.on_tile(done, len(tiles))
        finally:
            self.state.switch(tiles[0])
        return predicted

    def predictions(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: list[list[Cond] | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> Generator[tuple[Tile, list[Tensor]]]:
        """The tiles, and what the model predicts for each: on several devices as many at once as there are."""
        tiles = self.layout.tiles
        devices = dealing_devices(conds, x_in, timestep, model_options)
        # The last tiles that are too few for all devices are cut into strips, or are the host's.
        rounds = 0 if devices is None else len(tiles) // len(devices.each)
        dealt_out = 0
        if devices is not None and rounds:
            self.say_dealt(devices, rounds * len(devices.each))
            for first in range(0, rounds * len(devices.each), len(devices.each)):
                some = tiles[first : first + len(devices.each)]
                calls = [self.call_of(tile, conds, x_in, model_options) for tile in some]
                yield from zip(some, dealt(executor, devices, calls, timestep), strict=True)
            dealt_out = rounds * len(devices.each)
        for tile in tiles[dealt_out:]:
            call = self.call_of(tile, conds, x_in, model_options)
            with self.state.of(tile):
                parts = executor(model, call.conds, call.x, timestep, call.options)
            yield tile, parts

    def call_of(self, tile: Tile, conds: list[list[Cond] | None], x_in: Tensor, model_options: dict[str, Any]) -> Call:
        """The part of a step that belongs to a tile."""
        rows, columns = tile.latents
        cropped = [self.crop(cond, tile, x_in) for cond in conds]
        return Call(cropped, x_in[..., rows, columns], self.options_of(tile, model_options, x_in))

    def say_dealt(self, devices: Devices, tiles: int) -> None:
        """One line for each run."""
        line = f"{tiles} of {len(self.layout.tiles)} tiles are dealt out to {devices.names(len(devices.each))}"
        self.state.notices.log_once(line, line)

    def crop(self, conds: list[Cond] | None, tile: Tile, frame: Tensor) -> list[Cond] | None:
        """The conditionings of a tile, without those that lie outside it."""
        if conds is None:
            return None
        crop = self.picture_crop(tile, frame)
        cropped = [crop_cond(cond, crop, frame, self.controls) for cond in conds]
        return [cond for cond in cropped if cond is not None]

    def options_of(self, tile: Tile, model_options: dict[str, Any], frame: Tensor) -> dict[str, Any]:
        """The model options of one tile's calls, with its position."""
        options = crop_patches(
            model_options.get("transformer_options", {}), self.picture_crop(tile, frame), self.controls
        )
        part = FramePart(self.layout.grid, tile, self.run)
        return {**model_options, "transformer_options": {**options, KEY: part}}

    def picture_crop(self, tile: Tile, frame: Tensor) -> PictureCrop:
        """What cuts a tile out of what lies over the frame."""
        height, width = frame.shape[-2:]
        return PictureCrop(tile, (height, width), self.layout.units, self.state.notices)
