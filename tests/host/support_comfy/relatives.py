"""Tiny models that share FLUX.1's blocks, with seeded random weights, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from .flux import TINY, build_flux, fill_weights

CHROMA = {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "context_in_dim": 64,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": 256,
    "hidden_dim": 32,
    "n_layers": 1,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
"""Two double and two single blocks of Chroma; its channels are counted after patches of 2 x 2 are put together."""


def build_chroma(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A ModelPatcher around a tiny Chroma; ``overrides`` replace entries of :data:`CHROMA`."""
    import comfy.supported_models

    return _patcher(comfy.supported_models.Chroma({**CHROMA, **overrides}), seed, dtype)


def build_ovis(seed: int = 0) -> Any:
    """A ModelPatcher around a tiny Ovis-Image: FLUX.1's blocks with a gated MLP, no pooled text, numbered text."""
    return build_flux(
        seed=seed, vec_in_dim=None, guidance_embed=False, yak_mlp=True, txt_norm=True, txt_ids_dims=[1, 2]
    )


def build_longcat(seed: int = 0) -> Any:
    """A ModelPatcher around a tiny LongCat-Image, in hosts that know it: its positions begin after the text's."""
    import comfy.supported_models

    config = {**TINY, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
    return _patcher(comfy.supported_models.LongCatImage(config), seed)


def _patcher(config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    config.set_inference_dtype(dtype, None)
    patcher = ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)
    fill_weights(patcher.model.diffusion_model, seed)
    patcher.model.eval()
    return patcher
