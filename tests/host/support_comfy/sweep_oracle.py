"""What a combination of the sweep must give: stock nodes, one item at a time, on the whole frame."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph_inputs import prompt
from .sampling import run_node
from .sweep import CACHED, TEXT, Combination, Item


def expected(host: Any, drawn: Combination, item: Item, model: Any, vae: Any) -> tuple[Tensor, Tensor]:
    """Picture (B, H, W, 3) and latent (B, 16, h, w) of one item.

    Args:
        model: A stock model that attends as the method says.
        vae: Has encode and decode.
    """
    node = host.stock
    if drawn.cache:
        model = run_node(node("EasyCache"), model=model, **CACHED)[0]
    (model,) = run_node(node("ModelSamplingAuraFlow"), model=model, shift=3.0)
    image = colours(item.image)
    height, width = image.shape[1:3]
    latent = {}
    for number in range(1, drawn.stages + 1):
        factor = drawn.upscale_by ** (number / drawn.stages)
        size = round(height * factor), round(width * factor)
        if image.shape[1:3] != size:
            scale = {"width": size[1], "height": size[0], "upscale_method": "lanczos", "crop": "disabled"}
            (image,) = run_node(node("ImageScale"), image=image, **scale)
        latent = run_node(node("VAEEncode"), pixels=padded(image), vae=vae)[0]
        mask = None if item.mask is None else mask_of(item.mask, image.shape[0], size)
        if mask is not None:
            (latent,) = run_node(node("SetLatentNoiseMask"), samples=latent, mask=padded(mask[..., None])[..., 0])
        (latent,) = run_node(
            node("KSampler"),
            model=model,
            positive=item.positive,
            negative=item.negative or prompt(TEXT),  # The node wants one; it is not looked at where cfg is 1.
            latent_image=latent,
            seed=item.seed + number - 1,
            steps=drawn.steps,
            cfg=2.5 if drawn.negative else 1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=0.6 if drawn.stages == 1 else (0.7, 0.5)[number - 1],
        )
        redone = run_node(node("VAEDecode"), samples=latent, vae=vae)[0][:, : size[0], : size[1]]
        if mask is not None:
            redone = redone * mask[..., None] + image.to(redone) * (1 - mask[..., None])
        image = redone
    return image, latent["samples"]


def colours(image: Tensor) -> Tensor:
    """Three channels, of a type that the host's own nodes take."""
    image = image[..., :3] if image.shape[-1] > 2 else torch.cat(3 * [image[..., :1]], dim=-1)
    return image.float() if image.dtype == torch.bfloat16 else image


def padded(image: Tensor) -> Tensor:
    """Reflected at the bottom and on the right to whole tokens of 16 px."""
    below, right = -image.shape[1] % 16, -image.shape[2] % 16
    return F.pad(image.movedim(-1, 1), (0, right, 0, below), mode="reflect").movedim(1, -1)


def mask_of(mask: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
    """(B, *size): masks go round the pictures, surplus ones are left out."""
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    mask = mask[[number % len(mask) for number in range(batch)]]
    return mask[:, 0] if mask.shape[-2:] == size else F.interpolate(mask, size, mode="bilinear")[:, 0]
