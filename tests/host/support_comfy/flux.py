"""Tiny FLUX models for a booted host: random ones, the golden one, and one as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

TINY: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
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
    "guidance_embed": True,
}
"""Two double and two single blocks of FLUX.1 with its head size of 128, which files are detected by."""


def build_flux(dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A ModelPatcher around a small FLUX with seeded random weights, on the CPU.

    Args:
        dtype: Of weights and compute.
        seed: Of the weights.
        **overrides: Entries of :data:`TINY` to replace.
    """
    patcher = build_meta_flux(dtype, device="cpu", **overrides)
    fill_weights(patcher.model.diffusion_model, seed)
    patcher.model.eval()
    return patcher


def build_meta_flux(dtype: torch.dtype = torch.float32, device: str = "meta", **overrides: Any) -> Any:
    """A ModelPatcher around a FLUX without any weights, of any size; as :func:`build_flux`."""
    import comfy.supported_models
    from comfy.ldm.flux.model import FluxParams
    from comfy.model_patcher import ModelPatcher

    config = {**TINY, **overrides}
    if "txt_ids_dims" in FluxParams.__dataclass_fields__:
        config.setdefault("txt_ids_dims", [])
    flux = comfy.supported_models.Flux(config)
    flux.set_inference_dtype(dtype, None)
    return ModelPatcher(flux.get_model({}, "", device=torch.device(device)), torch.device("cpu"), torch.device("cpu"))


def fill_weights(module: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations of order one, so that every part of the model affects the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                noise *= weight.shape[1] ** -0.5
            elif "norm" in name:
                noise = 1 + 0.1 * noise
            else:
                noise *= 0.1
            weight.copy_(noise.to(weight.dtype))


def golden_flux() -> Any:
    """A ModelPatcher with the golden base's weights, float32."""
    path = GOLDEN / "base.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    channels = config["in_channels"] // 4
    patcher = build_flux(
        in_channels=channels,
        out_channels=channels,
        hidden_size=heads * head_dim,
        num_heads=heads,
        vec_in_dim=config["pooled_projection_dim"],
        context_in_dim=config["joint_attention_dim"],
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=config["axes_dims_rope"],
        guidance_embed=config["guidance_embeds"],
    )
    load_diffusers_weights(patcher.model.diffusion_model, patcher.model.model_config.unet_config, load_file(path))
    return patcher


def load_diffusers_weights(
    module: torch.nn.Module, unet_config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    """Copies a whole diffusers FLUX into the host's module, by the host's own table of names.

    Raises:
        AssertionError: A tensor has no counterpart in the host, or a part of the host's model was not filled.
    """
    import comfy.utils

    table = comfy.utils.flux_to_diffusers(unet_config)
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(torch.nan)
        for name, tensor in weights.items():
            place = table[name]
            # A target is a key, (key, (dim, start, length)) for a part of a fused weight, or
            # (key, None, function) where the two layouts order the rows differently.
            key, part, convert = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
            target = module.get_parameter(key)
            if part is not None:
                target = target.narrow(*part)
            target.copy_(tensor if convert is None else convert(tensor))
    unfilled = [name for name, weight in module.named_parameters() if weight.isnan().any()]
    assert not unfilled, f"the golden file left these without weights: {unfilled}"


def write_flux_file(path: Path, seed: int = 0) -> Path:
    """Writes the :data:`TINY` FLUX as a file for the stock UNETLoader and returns its path.

    The norms keep the published names, which end in ``.scale``: ComfyUI 0.9 cannot tell the model otherwise.
    """
    weights = build_flux(seed=seed).model.diffusion_model.state_dict()
    save_file(
        {name.replace("_norm.weight", "_norm.scale"): weight.contiguous() for name, weight in weights.items()}, path
    )
    return path


def write_student_file(path: Path, seed: int = 0, down_factor: int = 1) -> Path:
    """Writes random "distilled" weights for the :data:`TINY` FLUX in the published form and returns their path."""
    generator = torch.Generator().manual_seed(seed)
    width = TINY["hidden_size"]
    blocks = [(f"transformer_blocks.{i}", ("to_q", "to_k", "to_v", "to_out.0")) for i in range(TINY["depth"])]
    blocks += [(f"single_transformer_blocks.{i}", ("to_q", "to_k", "to_v")) for i in range(TINY["depth_single_blocks"])]
    weights: dict[str, torch.Tensor] = {}
    for block, projections in blocks:
        for name in projections:
            weights[f"{block}.attn.{name}.weight"] = torch.randn(width, width, generator=generator) * width**-0.5
            weights[f"{block}.attn.{name}.bias"] = torch.randn(width, generator=generator) * 0.1
        if down_factor > 1:
            cell = torch.rand(1, 1, 1, down_factor, 1, down_factor, 1, generator=generator)
            weights[f"{block}.attn.processor.spatial_weight"] = cell / cell.sum()
    save_file(weights, path)
    return path
