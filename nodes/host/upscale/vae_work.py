"""Encoding and decoding of a stage's pictures, whole or in tiles, with VAEs for pictures and for videos.

Source: what the stock nodes VAEEncode, VAEEncodeTiled, VAEDecode and VAEDecodeTiled call; ``comfy.sd.VAE.encode``,
which takes the pictures of a batch for the frames of a video if its latents have an axis of time;
``VAE.memory_used_decode``, ``comfy.model_management.get_total_memory``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.sdedit import Stage, automatic_vae_tile, vae_overlap, vae_tile_of


def can_tile(vae: Any) -> bool:
    """Whether it is the host's; a third-party VAE may have nothing but encode and decode."""
    return hasattr(vae, "memory_used_decode")


def tile_side(vae: Any, stage: Stage, chosen: int, tiles: tuple[int, int]) -> int:
    """Side in px of the VAE's tiles, 0 for the whole picture.

    Args:
        chosen: The user's; 0 is automatic: whole if it takes half of the card at most.
        tiles: Width and height of the picture's tiles as set, 0 for automatic.
    """
    if not can_tile(vae):
        return 0
    if not chosen:
        latent = stage.units.latent_shape(stage.grid, getattr(vae, "latent_channels", 16))
        total = comfy.model_management.get_total_memory(vae.device)
        if not any(tiles) and vae.memory_used_decode(latent, vae.vae_dtype) <= total // 2:
            return 0
    return vae_tile_of(stage, chosen or automatic_vae_tile(tiles))


def encode(vae: Any, image: Tensor, tile: int, stage: Stage) -> Tensor:
    """The latent of a stage's image (B, H, W, 3), in tiles of ``tile`` px, or whole if that is 0."""

    def latent_of(pixels: Tensor) -> Tensor:
        if tile:
            overlap = vae_overlap(tile, stage.units.latent_pixels)
            return vae.encode_tiled(pixels, tile_x=tile, tile_y=tile, overlap=overlap)
        return vae.encode(pixels)

    if not stage.units.has_frames:
        return latent_of(image)
    # A VAE for videos takes the pictures of a batch for the frames of one.
    latent = torch.cat([latent_of(one) for one in image.split(1)])
    return latent.unsqueeze(2) if latent.ndim == 4 else latent


def decode(vae: Any, latent: Tensor, tile: int, stage: Stage) -> Tensor:
    """The image (B, H, W, 3) of a stage's latent.

    Raises:
        ValueError: The VAE makes a picture of another size.
    """
    if tile:
        cell = stage.units.latent_pixels
        side, overlap = tile // cell, vae_overlap(tile, cell) // cell
        image = vae.decode_tiled(latent, tile_x=side, tile_y=side, overlap=overlap)
    else:
        image = vae.decode(latent)
    if image.ndim == 5:
        image = image.flatten(0, 1)  # As the stock node VAEDecode does it: one frame for each picture.
    if tuple(image.shape[1:3]) != stage.padded:
        (made_height, made_width), (height, width) = image.shape[1:3], stage.padded
        raise ValueError(
            f"vae made a picture of {made_width} x {made_height} px of a latent for {width} x {height} px; connect the "
            "VAE that the picture can be encoded and decoded with at one size."
        )
    return image
