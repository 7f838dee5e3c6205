"""The tiny FLUX as a file: the key layout of the published FLUX.1 files, which ComfyUI's own loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clear_core.integrations import flux_names
from clear_core.weights.fingerprint import sha256

from .model import CONFIG, new_tiny_flux

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

MODEL_FILE = Path(__file__).with_name("tiny_flux.safetensors")

BLOCKS = CONFIG["num_layers"], CONFIG["num_single_layers"], CONFIG["guidance_embeds"]


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers state dict of the tiny FLUX under the published names."""
    return flux_names.published_layout(state, *BLOCKS)


def diffusers_layout(file: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`published_layout`; ``like`` has the sizes of the parts."""
    return flux_names.diffusers_layout(file, {name: tensor.shape[0] for name, tensor in like.items()}, *BLOCKS)


def save_tiny_flux(model: FluxTransformer2DModel, path: Path, metadata: dict[str, str]) -> None:
    """Writes the model in bfloat16, 12 MB."""
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in published_layout(model.state_dict()).items()
    }
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def load_tiny_flux(path: Path | None = None) -> FluxTransformer2DModel:
    """The trained tiny FLUX, float32, in evaluation mode.

    Args:
        path: A file in the published layout, or a training state (its averaged weights are used); by default the
            model in the repository.
    """
    tensors = load_file(path or MODEL_FILE)
    model = new_tiny_flux()
    average = {name.removeprefix("average."): tensor for name, tensor in tensors.items() if name.startswith("average.")}
    state = average or diffusers_layout(tensors, model.state_dict())
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval().requires_grad_(False)


def model_fingerprint(path: Path | None = None) -> str:
    """SHA-256 of the model's file in hexadecimal digits: a record that states it tells which model it is of.

    Args:
        path: As in :func:`load_tiny_flux`.
    """
    return sha256(path or MODEL_FILE)
