"""Makes the hybrid laboratory's pictures, each once: a folder keeps their latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clear_core import token_grid
from clear_core.integrations.flux_denoiser import flux_arguments, unpack_latent
from clear_core.integrations.frame import grid_ids
from clear_core.sdedit import euler, noised
from clear_core.sdedit.tiles import DEFAULT_OVERLAP, TileLayout
from clear_core.weights import read_clear_file

from ..model import with_distilled_weights
from ..tiny_flux.caption import encode_captions
from ..tiny_flux.codec import decode, encode
from ..tiny_flux.model import GUIDANCE
from ..tiny_flux.weights import load_tiny_flux
from ..world import Scene
from .guidance_methods import enlarge, scene_noise
from .guidance_run import several_things
from .hybrid_attention import Plan, planned
from .hybrid_plans import DENSE, TILE_BASE, Setting
from .kept import kept
from .windows import window_file

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


@dataclass(frozen=True)
class TiledDenoiser:
    """The model's velocity of a frame, tile by tile, blended; a tile's tokens keep their places in the frame.

    Attributes:
        model: The transformer.
        at: Tells the model's blocks of the grid and the noise level of the call that comes.
        captions: One for each picture of the batch.
        tile: Side of a tile in px; 0 is the whole frame.
    """

    model: FluxTransformer2DModel
    at: Any
    captions: list[str]
    tile: int = 0

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        grid = token_grid(*latent.shape[2:])
        layout = TileLayout(grid, grid, 0)
        if self.tile:
            layout = TileLayout.of_pixels(grid, self.tile, self.tile, DEFAULT_OVERLAP)
        whole = torch.zeros_like(latent)
        ids = grid_ids(grid).unflatten(0, grid)
        for tile in layout.tiles:
            rows, columns = tile.latents
            own = ids[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width].flatten(0, 1)
            velocity = self._call(latent[:, :, rows, columns], sigma, own)
            whole[:, :, rows, columns] += layout.weight(tile) * velocity
        return whole

    def _call(self, latent: Tensor, sigma: float, ids: Tensor) -> Tensor:
        context, pooled = encode_captions(self.captions)
        grid, batch = token_grid(*latent.shape[2:]), latent.shape[0]
        self.at(grid, sigma)
        sigmas, guidance = latent.new_full((batch,), sigma), latent.new_full((batch,), GUIDANCE)
        call = flux_arguments(latent, sigmas, context, pooled, guidance)
        tokens = self.model(**call | {"img_ids": ids})[0]
        return unpack_latent(tokens, grid)


def model_of(plan: Plan) -> tuple[FluxTransformer2DModel, list[Tensor | None]]:
    """The tiny FLUX of a plan, and the pooling weights of its blocks; none where they pool by the mean."""
    model = load_tiny_flux()
    if not plan.distilled:
        return model, []
    with_distilled_weights(model, plan.spec)
    weights = read_clear_file(window_file(plan.spec)).spatial_weights()
    return model, [weights[block] for block in sorted(weights)]


class Folder:
    """Latents by setting and plan; a missing one is made.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def scenes(self, setting: Setting) -> list[Scene]:
        return several_things(setting.scenes)

    def base(self, setting: Setting) -> Tensor:
        """(scenes, 16, h, w): the pictures that are redrawn, from noise."""
        return self.latents(TILE_BASE, DENSE)[: setting.scenes]

    def latents(self, setting: Setting, plan: Plan) -> Tensor:
        """(scenes, 16, h, w)."""
        file = self.path / f"{setting.name}, {plan.name}.safetensors"
        return kept(file, lambda: {"latent": self._made(setting, plan)})["latent"]

    def _made(self, setting: Setting, plan: Plan) -> Tensor:
        noise = torch.cat([scene_noise(index, setting.side) for index in range(setting.scenes)])
        captions = ["" if setting.tile else scene.caption for scene in self.scenes(setting)]
        sigmas = setting.sigmas
        start = noise
        if setting.strength < 1:
            enlarged = encode(enlarge(decode(self.base(setting)).clamp(0, 1), setting.side))
            start = noised(enlarged, noise, sigmas[0])
        model, weights = model_of(plan)
        with planned(model, plan, weights) as at:
            return euler(TiledDenoiser(model, at, captions, setting.tile), start, torch.tensor(sigmas))
