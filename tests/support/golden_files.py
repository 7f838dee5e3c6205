"""The golden base and students as files, and the base in the layout of a ComfyUI checkpoint."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.support import PROJECT

GOLDEN = PROJECT / "tests" / "golden"

BASE = GOLDEN / "base.safetensors"

WIDTH = 64


def base_as_comfyui(prefix: str) -> dict[str, torch.Tensor]:
    """The golden base as a checkpoint in Black Forest Labs' layout: fused, with MLP rows and other tensors."""
    state, out = load_file(BASE), {f"{prefix}img_in.weight": torch.zeros(3, 5)}
    for end in ("weight", "bias"):
        double = "transformer_blocks.0.attn."
        out[f"{prefix}double_blocks.0.img_attn.qkv.{end}"] = torch.cat([state[f"{double}to_{c}.{end}"] for c in "qkv"])
        out[f"{prefix}double_blocks.0.txt_attn.qkv.{end}"] = torch.cat(
            [state[f"{double}add_{c}_proj.{end}"] for c in "qkv"]
        )
        out[f"{prefix}double_blocks.0.img_attn.proj.{end}"] = state[f"{double}to_out.0.{end}"]
        for index in range(2):
            single = f"single_transformer_blocks.{index}."
            out[f"{prefix}single_blocks.{index}.linear1.{end}"] = torch.cat(
                [state[f"{single}attn.to_{c}.{end}"] for c in "qkv"] + [state[f"{single}proj_mlp.{end}"]]
            )
    return out
