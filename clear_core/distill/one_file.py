"""A transformer from one safetensors file, as ComfyUI users have it: family and sizes are read from its tensors.

Names are the authors' (as ComfyUI's) or diffusers'. Other families than FLUX.1 are converted by diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..families import CHROMA, FLUX1, FLUX2, QWEN_IMAGE, SD3, Family
from ..integrations.flux_names import diffusers_layout
from ..wording import printable

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")

Config = dict[str, Any]

Shapes = Mapping[str, tuple[int, ...]]


class _UnknownModelError(ValueError):
    """The file holds no model that can be taught."""


def load_one_file(path: Path, dtype: torch.dtype) -> Any:
    """The transformer of one file, in evaluation mode on the CPU.

    Args:
        path: A safetensors file with all of a model's weights in 16 or 32 bits, or in plain float8.
        dtype: Of the weights.

    Raises:
        ValueError: It is no safetensors file, no model of a family with windows, quantised with scales, or incomplete;
            the sentence says which.
    """
    import diffusers
    from accelerate import init_empty_weights

    name = printable(path.name)
    tensors = _read(path)
    try:
        family, config = _recognised({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    except _UnknownModelError as error:
        raise ValueError(f"{name} {error}") from None
    # Weights alone are left empty: positions are computed by the constructor.
    with init_empty_weights(include_buffers=False):
        model: Any = getattr(diffusers, family.diffusers.transformer)(**config)
    wanted = model.state_dict()
    try:
        state = _converted(family, tensors, wanted, config)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} looks like a {family.name} but lacks {printable(error, 120)}; use a whole model's file."
        ) from None
    state = {key: tensor.to(dtype) for key, tensor in state.items()} | {
        key: tensor for key, tensor in wanted.items() if key not in state and tensor.device.type != "meta"
    }
    odd = sorted(state.keys() ^ wanted.keys())
    odd += [key for key in state.keys() & wanted.keys() if state[key].shape != wanted[key].shape]
    if odd:
        raise ValueError(
            f"{name} looks like a {family.name} but {odd[0]} is missing or of another size; use a whole model's file."
        )
    model.load_state_dict(state, assign=True)
    return model.to(dtype).train(False)


def read_config(path: Path) -> tuple[Family, Config]:
    """Family and sizes of one file, from its header alone.

    Raises:
        ValueError: As :func:`load_one_file`.
    """
    try:
        return _recognised({key: tuple(tensor.shape) for key, tensor in _read(path).items()})
    except _UnknownModelError as error:
        raise ValueError(f"{printable(path.name)} {error}") from None


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors, mapped into memory, without a prefix."""
    name = printable(path.name)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{name} is not a safetensors file; expected one, with the model in 16 bits (a GGUF is quantised: choose "
            "the model that it was made from)."
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name} cannot be read ({printable(error, 120)}); choose the file again.") from None
    scaled = [key for key in tensors if key.endswith((".scale_weight", ".weight_scale", ".comfy_quant"))]
    whole = [key for key, tensor in tensors.items() if key.endswith(".weight") and not tensor.is_floating_point()]
    if scaled or whole:
        raise ValueError(
            f"{name} is quantised ({printable((scaled or whole)[0], 80)}); choose the model in 16 bits, and set base "
            "to fp8 or nf4 to hold it in less memory."
        )
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    return tensors


def _count(shapes: Shapes, stack: str) -> int:
    """Number of blocks in a list of blocks."""
    indices = [int(key.split(".")[1]) for key in shapes if key.startswith(f"{stack}.") and key.split(".")[1].isdigit()]
    return max(indices, default=-1) + 1


def _rope(head_dim: int) -> tuple[int, int, int]:
    """Shares of a head's size that the three axes get, as in FLUX.1: 16, 56 and 56 of 128."""
    side = 2 * (7 * head_dim // 32)
    return head_dim - 2 * side, side, side


def _flux_sizes(shapes: Shapes) -> Config:
    """What FLUX.1, Chroma and FLUX.2 show in the same tensors."""
    width, channels = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        "in_channels": channels,
        "num_layers": _count(shapes, "double_blocks"),
        "num_single_layers": _count(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }


def _flux1(shapes: Shapes) -> Config:
    sizes = _flux_sizes(shapes)
    return {
        **sizes,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": _rope(sizes["attention_head_dim"]),
    }


def _chroma(shapes: Shapes) -> Config:
    sizes = _flux_sizes(shapes)
    hidden, inputs = shapes["distilled_guidance_layer.in_proj.weight"]
    layers = {key.split(".")[2] for key in shapes if key.startswith("distilled_guidance_layer.layers.")}
    return {
        **sizes,
        "axes_dims_rope": _rope(sizes["attention_head_dim"]),
        "approximator_num_channels": inputs,
        "approximator_hidden_dim": hidden,
        "approximator_layers": len(layers),
    }


def _flux2(shapes: Shapes) -> Config:
    sizes = _flux_sizes(shapes)
    return {
        **sizes,
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        # Gate and value share the first layer of an MLP.
        "mlp_ratio": shapes["double_blocks.0.img_mlp.0.weight"][0] / 2 / shapes["img_in.weight"][0],
        "axes_dims_rope": (sizes["attention_head_dim"] // 4,) * 4,
    }


def _qwen(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": _count(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": _rope(head),
        # Its file marks Qwen-Image-Edit 2511 so; ComfyUI reads the same mark.
        "zero_cond_t": "__index_timestep_zero__" in shapes,
    }


def _sd3(shapes: Shapes) -> Config:
    layers = _count(shapes, "joint_blocks")
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        # As many heads as blocks, in every SD3.
        "attention_head_dim": width // layers,
        "num_attention_heads": layers,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": round(shapes["pos_embed"][-2] ** 0.5),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
        "dual_attention_layers": tuple(
            index for index in range(layers) if f"joint_blocks.{index}.x_block.attn2.qkv.weight" in shapes
        ),
    }


# A tensor that only this family has, and its sizes; in this order, since the first ones have FLUX.1's tensors too.
_MARKS: tuple[tuple[str, Family, Callable[[Shapes], Config]], ...] = (
    ("distilled_guidance_layer.in_proj.weight", CHROMA, _chroma),
    ("double_stream_modulation_img.lin.weight", FLUX2, _flux2),
    ("vector_in.in_layer.weight", FLUX1, _flux1),
    ("transformer_blocks.0.img_mod.1.weight", QWEN_IMAGE, _qwen),
    ("joint_blocks.0.x_block.attn.qkv.weight", SD3, _sd3),
)


def _recognised(shapes: Shapes) -> tuple[Family, Config]:
    names = ", ".join(family.name for _, family, _ in _MARKS)
    for mark, family, sizes in _MARKS:
        if mark in shapes:
            try:
                return family, sizes(shapes)
            except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
                raise _UnknownModelError(
                    f"looks like a {family.name} but lacks {printable(error, 80)}; use a whole model's file."
                ) from None
    raise _UnknownModelError(
        f"is no model of {names} in its authors' names ({printable(next(iter(shapes), 'it is empty'), 80)}); for "
        "diffusers' names give the folder with its config.json."
    )


def _converted(
    family: Family, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], config: Config
) -> dict[str, Tensor]:
    if family is FLUX1:
        rows = {key: tensor.shape[0] for key, tensor in wanted.items()}
        blocks = config["num_layers"], config["num_single_layers"]
        return diffusers_layout(tensors, rows, *blocks, config["guidance_embeds"])
    if family is QWEN_IMAGE:
        return {key: tensor for key, tensor in tensors.items() if not key.startswith("__")}
    from diffusers.loaders import single_file_utils as library

    convert: Any = {
        CHROMA.name: library.convert_chroma_transformer_checkpoint_to_diffusers,
        FLUX2.name: library.convert_flux2_transformer_checkpoint_to_diffusers,
        SD3.name: library.convert_sd3_transformer_checkpoint_to_diffusers,
    }[family.name]
    return convert(dict(tensors))
