"""Tiny random models of families beside FLUX.1, built through the host's own classes, with prompts and VAEs for them.

Also a custom node for test servers, copied into their custom_nodes: it imports nothing of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from .configs import FLUX2, HUNYUAN, NEWER_RADIANCE, QWEN, RADIANCE, SD1, SD3, SDXL, TEXT, WAN22, Z_IMAGE


@dataclass(frozen=True)
class TinyKind:
    """A tiny model of one family.

    Attributes:
        supported: Name of its class in ``comfy.supported_models``.
        config: Its ``unet_config``.
        channels, cell: Channels of its latents, and side of a latent cell in px.
        unit: Side in px of what its sizes are multiples of.
        tokens: Text tokens of a prompt.
        has_frames: Whether its latents have an axis of time.
    """

    supported: str
    config: dict[str, Any] = field(hash=False)
    channels: int
    cell: int
    unit: int
    tokens: int = 7
    has_frames: bool = False

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
        """A ModelPatcher with seeded random weights, on the CPU; ``overrides`` replace entries of the configuration."""
        import comfy.supported_models
        from comfy.model_patcher import ModelPatcher

        cpu, values = torch.device("cpu"), {**self.config, **overrides}
        if self.config is RADIANCE:
            from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

            known = ChromaRadianceParams.__dataclass_fields__
            values.update({name: value for name, value in NEWER_RADIANCE.items() if name in known})
        config = getattr(comfy.supported_models, self.supported)(values)
        config.set_inference_dtype(dtype, None)
        patcher = ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)
        fill(patcher.model.diffusion_model, seed)
        patcher.model.eval()
        return patcher

    def prompt(self, seed: int = 2, **extra: Any) -> list:
        """A conditioning as text encoders give it; ``extra`` is put beside it."""
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, self.tokens, TEXT, generator=generator)
        return [[context, {"pooled_output": torch.randn(1, 32, generator=generator), "guidance": 3.5, **extra}]]

    def vae(self) -> Any:
        """A VAE of plain means over its cells."""
        return Means(self.channels, self.cell, self.has_frames)

    @property
    def is_known(self) -> bool:
        """Whether the running host has such a model."""
        import comfy.supported_models

        return hasattr(comfy.supported_models, self.supported)


KINDS = {
    "SDXL": TinyKind("SDXL", SDXL, 4, 8, 64),
    "SD3.5": TinyKind("SD3", SD3, 16, 8, 16),
    "FLUX.2": TinyKind("Flux2", FLUX2, 128, 16, 16),
    "Qwen-Image": TinyKind("QwenImage", QWEN, 16, 8, 16, has_frames=True),
    "Z-Image": TinyKind("ZImage", Z_IMAGE, 16, 8, 16),
}
"""What every test of the families runs on."""

OTHERS = {
    "SD1.5": TinyKind("SD15", SD1, 4, 8, 64),
    "Chroma Radiance": TinyKind("ChromaRadiance", RADIANCE, 3, 1, 16),
    "HunyuanImage 2.1": TinyKind("HunyuanImage21", HUNYUAN, 64, 32, 32),
    "Wan 2.2 5B": TinyKind("WAN22_T2V", WAN22, 48, 16, 32, has_frames=True),
}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations of order one, so that every part of the model affects the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                noise *= (weight[0].numel() or 1) ** -0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.1 * noise
            else:
                noise *= 0.1
            weight.copy_(noise.to(weight.dtype))
        for name, table in module.named_buffers():
            if name == "pos_embed":
                table.copy_(waves(round(table.shape[1] ** 0.5), table.shape[2])[None])


def waves(side: int, width: int) -> torch.Tensor:
    """(side * side, width) positions as sines and cosines of rows and columns, as SD3's table has them."""
    rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class Means:
    """A VAE of plain means, so that a seam in the latent is one in the picture.

    It says about itself what the host's do.

    As a VAE for videos it takes the pictures of a batch for frames, as the host does.
    """

    def __init__(self, channels: int, cell: int, has_frames: bool = False) -> None:
        self.latent_channels, self.cell, self.latent_dim = channels, cell, 3 if has_frames else 2

    def spacial_compression_encode(self) -> int:
        return self.cell

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        means = F.avg_pool2d(pixels.movedim(-1, 1).float(), self.cell)
        latent = (means * 2 - 1).repeat(1, -(-self.latent_channels // 3), 1, 1)[:, : self.latent_channels]
        return latent.movedim(0, 1)[None] if self.latent_dim == 3 else latent

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        if self.latent_dim == 3:
            return torch.stack([self.picture(frames.movedim(1, 0)) for frames in samples])
        return self.picture(samples)

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        rgb = latent[:, :3] / 2 + 0.5
        return F.interpolate(rgb, scale_factor=self.cell, mode="nearest").movedim(1, -1).clamp(0, 1)


class ClearTestModel:
    """A tiny model with a prompt and a VAE for it."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "VAE")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ([*KINDS, *OTHERS],)}}

    def make(self, kind):
        tiny = {**KINDS, **OTHERS}[kind]
        return tiny.build(), tiny.prompt(), tiny.vae()


NODE_CLASS_MAPPINGS = {"ClearTestModel": ClearTestModel}
