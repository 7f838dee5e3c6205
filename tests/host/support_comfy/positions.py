"""Positions as the model's own embedder gets them, and the whole frame's prediction put together from tiles by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .sampling import Conditioning, predict

EMBEDDER = "diffusion_model.pe_embedder"


@contextmanager
def recorded_ids() -> Iterator[list[Tensor]]:
    """Inside, the (tokens, axes) ids of every call of the host's embedder, of the first sequence of the batch."""
    from comfy.ldm.flux.layers import EmbedND

    seen: list[Tensor] = []
    stock = EmbedND.forward

    def forward(self: Any, ids: Tensor) -> Tensor:
        seen.append(ids[0].clone())
        return stock(self, ids)

    EmbedND.forward = forward
    try:
        yield seen
    finally:
        EmbedND.forward = stock


def with_moved_image(patcher: Any, y: int, x: int) -> Any:
    """A clone of a stock model whose image ids are moved by (y, x) tokens, in the model's own forward."""
    clone = patcher.clone()
    stock = clone.get_model_object("diffusion_model.forward_orig")

    def forward_orig(img: Tensor, img_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return stock(img, img_ids.double() + torch.tensor([0.0, y, x], dtype=torch.float64), *args, **kwargs)

    clone.add_object_patch("diffusion_model.forward_orig", forward_orig)
    return clone


def predict_by_hand(patcher: Any, layout: Any, x: Tensor, sigma: float, positive: Conditioning) -> Tensor:
    """What a stock model (with oracle attention) predicts of a frame in the tiles of a ``TileLayout``, blended."""
    whole = torch.zeros_like(x)
    for tile in layout.tiles:
        rows, columns = tile.latents
        part = predict(with_moved_image(patcher, tile.y, tile.x), x[..., rows, columns], sigma, positive)
        whole[..., rows, columns] += part * layout.weight(tile)
    return whole


def rotations(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """(n, dim / 2, 2, 2) float64 rotation matrices of one axis, from RoPE's own formula."""
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double()[:, None] * frequencies
    rows = (angles.cos(), -angles.sin(), angles.sin(), angles.cos())
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 2))
