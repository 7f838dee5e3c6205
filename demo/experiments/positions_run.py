"""Makes the pictures of the laboratory of positions, each once: a folder keeps their latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clear_core import token_grid
from clear_core.position_table import PositionTable
from clear_core.sdedit import euler, noised
from clear_core.sdedit.tiles import DEFAULT_OVERLAP, TileLayout

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.codec import encode
from ..tiny_sd3.model import velocity
from ..world import Scene
from .guidance_methods import enlarge, scene_noise
from .guidance_record import drawn
from .guidance_run import several_things
from .positions_methods import BASE_SIDE, SCENES, Method, Setting

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel


@dataclass(frozen=True)
class PositionedDenoiser:
    """The velocity of a frame, tile by tile, blended.

    Attributes:
        model: The tiny SD3.
        method: Says which tiles, and which positions their tokens have.
        captions: One for each picture of the batch.
    """

    model: SD3Transformer2DModel
    method: Method
    captions: list[str]

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        return self.at(latent, latent.new_full((latent.shape[0],), sigma))

    def at(self, latent: Tensor, sigmas: Tensor) -> Tensor:
        """(B, 16, H, W) velocities at (B,) noise levels."""
        grid = token_grid(*latent.shape[2:])
        layout = TileLayout(grid, grid, 0)
        if self.method.tile:
            layout = TileLayout.of_pixels(grid, self.method.tile, self.method.tile, DEFAULT_OVERLAP)
        told = encode_captions(self.captions if self.method.captioned else [""] * len(self.captions))
        embedder: Any = self.model.pos_embed
        table = PositionTable.read(embedder.pos_embed)
        whole = torch.zeros_like(latent)
        for tile in layout.tiles:
            rows, columns = tile.latents
            positions = self.method.positions(table, grid, tile)
            embedder.cropped_pos_embed = lambda height, width, found=positions: found
            try:
                flow = velocity(self.model, latent[:, :, rows, columns], sigmas, *told)
            finally:
                del embedder.cropped_pos_embed
            whole[:, :, rows, columns] += layout.weight(tile) * flow
        return whole


class Folder:
    """Latents by setting and method; a missing one is made.

    Attributes:
        path: The folder.
        model: The tiny SD3.
    """

    def __init__(self, path: Path, model: SD3Transformer2DModel) -> None:
        self.path = path
        self.model = model
        path.mkdir(parents=True, exist_ok=True)

    @property
    def scenes(self) -> list[Scene]:
        return several_things(SCENES)

    def latents(self, setting: Setting, method: Method) -> Tensor:
        """(scenes, 16, h, w)."""
        file = self.path / f"{setting.name}, {method.name}.safetensors"
        if not file.exists():
            with torch.inference_mode():
                save_file({"latent": self._made(setting, method).contiguous()}, file)
        return load_file(file)["latent"]

    def _made(self, setting: Setting, method: Method) -> Tensor:
        noise = torch.cat([scene_noise(index, setting.side) for index in range(SCENES)])
        sigmas = setting.sigmas
        start = noise
        if setting.strength < 1:
            small = torch.stack([drawn(scene, BASE_SIDE) for scene in self.scenes])
            start = noised(encode(enlarge(small, setting.side)), noise, sigmas[0])
        denoiser = PositionedDenoiser(self.model, method, [scene.caption for scene in self.scenes])
        return euler(denoiser, start, torch.tensor(sigmas))
