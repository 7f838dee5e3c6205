"""FLUX.1's tensors under the names of its published files, which ComfyUI reads, and under those of diffusers.

diffusers has a conversion too, but for models of FLUX.1's own width alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# Published name, then the diffusers names stacked in it; for weights and biases.
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

MODULATION = "final_layer.adaLN_modulation"
"""diffusers swaps the halves of this layer, scale and shift."""


def name_table(num_double: int, num_single: int, guidance: bool) -> Iterator[tuple[str, list[str]]]:
    """(published name, diffusers names stacked in it) of every tensor.

    Args:
        num_double, num_single: Numbers of blocks.
        guidance: Whether the model has a guidance input.
    """
    for theirs, ours in OUTER.items():
        if guidance or not theirs.startswith("guidance_in"):
            for end in ("weight", "bias"):
                yield f"{theirs}.{end}", [f"{name}.{end}" for name in ours]
    for kind, stack, count, table, norms in (
        ("double_blocks", "transformer_blocks", num_double, DOUBLE, DOUBLE_NORMS),
        ("single_blocks", "single_transformer_blocks", num_single, SINGLE, SINGLE_NORMS),
    ):
        for index in range(count):
            for theirs, ours in table.items():
                for end in ("weight", "bias"):
                    yield f"{kind}.{index}.{theirs}.{end}", [f"{stack}.{index}.{name}.{end}" for name in ours]
            # ComfyUI 0.9 detects a FLUX by ".scale".
            for theirs, ours in norms.items():
                yield f"{kind}.{index}.{theirs}.scale", [f"{stack}.{index}.{ours}.weight"]


def published_layout(
    state: Mapping[str, Tensor], num_double: int, num_single: int, guidance: bool
) -> dict[str, Tensor]:
    """A diffusers state dict of a FLUX.1 under the published names."""
    result: dict[str, Tensor] = {}
    for theirs, ours in name_table(num_double, num_single, guidance):
        stacked = torch.cat([state[name] for name in ours])
        result[theirs] = torch.cat(stacked.chunk(2)[::-1]) if theirs.startswith(MODULATION) else stacked
    return result


def diffusers_layout(
    file: Mapping[str, Tensor], rows: Mapping[str, int], num_double: int, num_single: int, guidance: bool
) -> dict[str, Tensor]:
    """The inverse of :func:`published_layout`; ``rows`` has the rows of each tensor in diffusers.

    Raises:
        KeyError: A tensor is missing.
    """
    result: dict[str, Tensor] = {}
    for theirs, ours in name_table(num_double, num_single, guidance):
        tensor = torch.cat(file[theirs].chunk(2)[::-1]) if theirs.startswith(MODULATION) else file[theirs]
        result |= dict(zip(ours, tensor.split([rows[name] for name in ours]), strict=True))
    return result
