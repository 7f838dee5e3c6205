"""Models of other families than FLUX.1 in tests: latents of so many units, runs of CLEARUpscale, counted calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .sampling import run_node
from .test_only_models import TinyKind

SIGMA = 0.6
GRID, TILE = (4, 6), (3, 3)
"""Units of a frame and of its tiles, two by three of them."""

Enlarged = tuple[torch.Tensor, torch.Tensor, str]
"""Picture, samples and info of CLEARUpscale."""


def enlarged(host: Any, kind: TinyKind, model: Any, image: torch.Tensor, **inputs: Any) -> Enlarged:
    """What CLEARUpscale makes of a picture with a tiny model and its own prompt and VAE."""
    inputs = {"positive": kind.prompt(), "vae": kind.vae(), "steps": 2, "seed": 3, **inputs}
    with torch.inference_mode():
        out, latent, info = run_node(host.stock("CLEARUpscale"), image=image, model=model, **inputs)
    return out, latent["samples"], info


def units_of(host_part: Callable[[str], Any], kind: TinyKind) -> Any:
    """The units of a kind's models, as the pack reads them."""
    return host_part("model.picture_model").picture_model(kind.build(), kind.vae()).units


def in_tiles_of(host_part: Callable[[str], Any], kind: TinyKind, model: Any, overlap: int = 1) -> Any:
    """The model that runs a frame of :data:`GRID` in tiles of :data:`TILE`."""
    module = host_part("upscale.tiled_model")
    layout = module.TileLayout(GRID, TILE, overlap, units=units_of(host_part, kind))
    return module.TiledModel(layout, lambda done, tiles: None).install(model)


def noise(kind: TinyKind, grid: tuple[int, int] = GRID, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """A latent of so many units."""
    cells, time = kind.unit // kind.cell, (1,) if kind.has_frames else ()
    shape = (batch, kind.channels, *time, grid[0] * cells, grid[1] * cells)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def counted(model: Any) -> tuple[Any, list[int]]:
    """A clone that notes its calls."""
    calls: list[int] = []
    clone = model.clone()
    clone.add_wrapper_with_key(
        "apply_model", "count", lambda executor, *args, **kw: calls.append(1) or executor(*args, **kw)
    )
    return clone, calls
