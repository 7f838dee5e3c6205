"""A small FLUX.2 for the laboratory of distillation: made again by each run, since it only has to be a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clear_core.distill.families import TEACHINGS, Teaching, Text
from clear_core.families import FLUX2

from ..tiny_flux.caption import CONTEXT
from ..tiny_flux.codec import CHANNELS
from ..training import Recipe, Stage

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

CONFIG: dict[str, Any] = {
    "in_channels": 4 * CHANNELS,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "joint_attention_dim": CONTEXT,
    "axes_dims_rope": (16, 16, 16, 16),
    "guidance_embeds": False,
}
"""A token is one cell of four times the codec's channels: 16 px, as in every FLUX.2."""

TEACHING: Teaching = next(teaching for teaching in TEACHINGS if teaching.family is FLUX2)

STAGES = (Stage(800, ((192, 192, 8),), (1e-3, 1e-3)), Stage(450, ((256, 256, 8),), (1e-3, 2e-5), shift=0.3))
"""Small pictures first: they teach the layout at less cost. One size each: torch.compile takes minutes for one."""


def new_flux2(seed: int = 0) -> Flux2Transformer2DModel:
    """An untrained small FLUX.2 whose blocks start as the identity (modulation and output at zero)."""
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Flux2Transformer2DModel(**CONFIG)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ("modulation" in name or name in ("norm_out.linear", "proj_out")):
            nn.init.zeros_(module.weight)
    return model


def cells(latents: Tensor) -> Tensor:
    """(..., 16, H, W) of the codec to (..., 64, H / 2, W / 2): a cell for each token."""
    return F.pixel_unshuffle(latents, 2)


def velocity(model: nn.Module, latents: Tensor, sigma: Tensor, context: Tensor, _pooled: Tensor) -> Tensor:
    """The model's prediction of ``noise - x``, in the codec's latents as in ``demo/training.py``."""
    return F.pixel_shuffle(TEACHING.call(model, cells(latents), sigma, Text(context), None), 2)


def save_flux2(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Writes the model in bfloat16, under diffusers' names."""
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def load_flux2(path: Path) -> Flux2Transformer2DModel:
    """The trained model of a file, float32, in evaluation mode."""
    model = new_flux2()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.eval().requires_grad_(False)


RECIPE = Recipe("small_flux2", new_flux2, velocity, save_flux2, STAGES)
