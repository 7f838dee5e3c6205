"""The tiny FLUX as a file: the key layout of the published FLUX.1 files, which ComfyUI's own loader reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import CONFIG, new_tiny_flux

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

MODEL_FILE = Path(__file__).with_name("tiny_flux.safetensors")

# Published name, then the diffusers names that are stacked in it; weights and biases alike.
OUTER = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
}
DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


def name_table() -> Iterator[tuple[str, list[str]]]:
    """(published name, diffusers names stacked in it) of every tensor."""
    for theirs, ours in OUTER.items():
        for end in ("weight", "bias"):
            yield f"{theirs}.{end}", [f"{name}.{end}" for name in ours]
    for kind, stack, count, table, norms in (
        ("double_blocks", "transformer_blocks", CONFIG["num_layers"], DOUBLE, DOUBLE_NORMS),
        ("single_blocks", "single_transformer_blocks", CONFIG["num_single_layers"], SINGLE, SINGLE_NORMS),
    ):
        for index in range(count):
            for theirs, ours in table.items():
                for end in ("weight", "bias"):
                    yield f"{kind}.{index}.{theirs}.{end}", [f"{stack}.{index}.{name}.{end}" for name in ours]
            # ComfyUI 0.9 knows a FLUX by ".scale".
            for theirs, ours in norms.items():
                yield f"{kind}.{index}.{theirs}.scale", [f"{stack}.{index}.{ours}.weight"]


def is_output_modulation(name: str) -> bool:
    """Whether a tensor's halves, scale and shift, stand the other way round in diffusers."""
    return name.startswith("final_layer.adaLN_modulation")


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers state dict of the tiny FLUX under the published names."""
    result = {}
    for theirs, ours in name_table():
        stacked = torch.cat([state[name] for name in ours])
        result[theirs] = torch.cat(stacked.chunk(2)[::-1]) if is_output_modulation(theirs) else stacked
    return result


def diffusers_layout(file: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`published_layout`; ``like`` tells the sizes of the parts."""
    result = {}
    for theirs, ours in name_table():
        tensor = torch.cat(file[theirs].chunk(2)[::-1]) if is_output_modulation(theirs) else file[theirs]
        result |= dict(zip(ours, tensor.split([like[name].shape[0] for name in ours]), strict=True))
    return result


def save_tiny_flux(model: FluxTransformer2DModel, path: Path, metadata: dict[str, str]) -> None:
    """Writes the model in bfloat16, 12 MB."""
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in published_layout(model.state_dict()).items()
    }
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def load_tiny_flux(path: Path | None = None) -> FluxTransformer2DModel:
    """The trained tiny FLUX, float32, in evaluation mode.

    Args:
        path: A file in the published layout, or a training state (its averaged weights are taken); by default the
            model that comes with the repository.
    """
    tensors = load_file(path or MODEL_FILE)
    model = new_tiny_flux()
    average = {name.removeprefix("average."): tensor for name, tensor in tensors.items() if name.startswith("average.")}
    state = average or diffusers_layout(tensors, model.state_dict())
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval().requires_grad_(False)
