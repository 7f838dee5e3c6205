"""The tiny SD3 as a file: the key layout of the published SD3 files, which ComfyUI's own loader reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import CONFIG, new_tiny_sd3

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

MODEL_FILE = Path(__file__).with_name("tiny_sd3.safetensors")

TABLE = "pos_embed.pos_embed"

# Published name, then the diffusers names stacked in it; for weights and biases.
OUTER = {
    "x_embedder.proj": ["pos_embed.proj"],
    "context_embedder": ["context_embedder"],
    "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
    "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
    "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
IMAGE = {
    "x_block.adaLN_modulation.1": ["norm1.linear"],
    "x_block.attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "x_block.attn.proj": ["attn.to_out.0"],
    "x_block.mlp.fc1": ["ff.net.0.proj"],
    "x_block.mlp.fc2": ["ff.net.2"],
    "context_block.adaLN_modulation.1": ["norm1_context.linear"],
    "context_block.attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
}
# The last block has none of these: its text goes nowhere.
TEXT_OUT = {
    "context_block.attn.proj": ["attn.to_add_out"],
    "context_block.mlp.fc1": ["ff_context.net.0.proj"],
    "context_block.mlp.fc2": ["ff_context.net.2"],
}
NORMS = {
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
}
LAST = CONFIG["num_layers"] - 1
# Where diffusers has scale before shift, and the published files shift before scale.
SWAPPED = ("final_layer.adaLN_modulation.1", f"joint_blocks.{LAST}.context_block.adaLN_modulation.1")


def name_table() -> Iterator[tuple[str, list[str]]]:
    """(published name, diffusers names stacked in it) of every tensor."""
    yield "pos_embed", [TABLE]
    for theirs, ours in OUTER.items():
        for end in ("weight", "bias"):
            yield f"{theirs}.{end}", [f"{name}.{end}" for name in ours]
    for index in range(CONFIG["num_layers"]):
        for theirs, ours in (IMAGE if index == LAST else IMAGE | TEXT_OUT).items():
            for end in ("weight", "bias"):
                yield f"joint_blocks.{index}.{theirs}.{end}", [f"transformer_blocks.{index}.{n}.{end}" for n in ours]
        for theirs, one in NORMS.items():
            yield f"joint_blocks.{index}.{theirs}.weight", [f"transformer_blocks.{index}.{one}.weight"]


def swapped(name: str, tensor: Tensor) -> Tensor:
    """A tensor with its halves in the other layout's order; its own inverse."""
    return torch.cat(tensor.chunk(2)[::-1]) if name.startswith(SWAPPED) else tensor


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers state dict of the tiny SD3 under the published names."""
    return {theirs: swapped(theirs, torch.cat([state[name] for name in ours])) for theirs, ours in name_table()}


def diffusers_layout(file: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`published_layout`; ``like`` has the sizes of the parts."""
    result: dict[str, Tensor] = {}
    for theirs, ours in name_table():
        parts = swapped(theirs, file[theirs]).split([like[name].shape[0] for name in ours])
        result |= dict(zip(ours, parts, strict=True))
    return result


def save_tiny_sd3(model: SD3Transformer2DModel, path: Path, metadata: dict[str, str]) -> None:
    """Writes the matrices of the blocks in float8 (e4m3) and the rest in bfloat16, 4.5 MB."""
    tensors = {
        name: tensor.to(stored_dtype(name, tensor)).contiguous()
        for name, tensor in published_layout(model.state_dict()).items()
    }
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor in the file."""
    return torch.float8_e4m3fn if name.startswith("joint_blocks") and tensor.ndim == 2 else torch.bfloat16


def load_tiny_sd3(path: Path | None = None) -> SD3Transformer2DModel:
    """The trained tiny SD3, float32, in evaluation mode.

    Args:
        path: A file in the published layout, or a training state (its averaged weights are used); by default the
            model in the repository.
    """
    tensors = load_file(path or MODEL_FILE)
    model = new_tiny_sd3()
    average = {name.removeprefix("average."): tensor for name, tensor in tensors.items() if name.startswith("average.")}
    # The table is no parameter, and so not in a training state.
    state = {TABLE: model.state_dict()[TABLE]} | (average or diffusers_layout(tensors, model.state_dict()))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval().requires_grad_(False)
