"""Model files in the formats that people load, each made of the same tensors by the host's own quantisation.

Source: ``comfy.quant_ops.QUANT_ALGOS`` and ``comfy.utils.convert_old_quants`` (comfy_quant and scaled fp8 files),
``UNETLoader`` (fp8 by cast), ComfyUI 0.33.0; ComfyUI-GGUF's own loader.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from .sampling import run_node

GGUF_PACK = "ComfyUI-GGUF"
SKIPPED = ("norm", "mod")
"""Layers of blocks that published quantised files leave in bf16: modulation and norms."""


@dataclass(frozen=True)
class Algorithm:
    """One of the host's formats for a layer.

    Attributes:
        name: In ``QUANT_ALGOS``.
        options: Of its layout's ``quantize``.
        stated: What a file states beside the format's name.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A format as users know it.

    Attributes:
        name: Of its row.
        kind: "comfy_quant": the host's layers; "scaled": fp8 with a scale, the older files; "cast": bf16 file, the
            loader's ``weight_dtype``; "gguf".
        layers: For comfy_quant, the algorithm of the block layers whose name holds a word; the first that fits.
        detail: weight_dtype of a cast, or GGUF's name of its quantisation.
    """

    name: str
    kind: Literal["comfy_quant", "scaled", "cast", "gguf"] = "comfy_quant"
    layers: tuple[tuple[str, Algorithm], ...] = ()
    detail: str = "default"


def of_all(name: str, options: Mapping[str, Any] | None = None, stated: Mapping[str, Any] | None = None) -> Any:
    """One algorithm for all layers."""
    return (("", Algorithm(name, options or {}, stated or {})),)


# The tiny FLUX is 256 wide: a rotation over 256 channels, the published files' size, fits it once.
ROTATED = {"convrot": True, "convrot_groupsize": 256}
RECALCULATED = {"scale": "recalculate"}
NVFP4, FP8 = Algorithm("nvfp4", RECALCULATED), Algorithm("float8_e4m3fn", RECALCULATED)

FORMATS = (
    Format("bf16", "cast"),
    Format("fp8, by the loader", "cast", detail="fp8_e4m3fn"),
    Format("fp8 scaled, older files", "scaled"),
    Format("fp8 scaled", layers=(("", FP8),)),
    Format("mxfp8", layers=of_all("mxfp8")),
    Format("nvfp4", layers=(("", NVFP4),)),
    Format("int8, row-wise", layers=of_all("int8_tensorwise", {"per_channel": True})),
    Format("int8, convrot", layers=of_all("int8_tensorwise", {"per_channel": True, **ROTATED}, ROTATED)),
    Format("int4, convrot", layers=of_all("convrot_w4a4")),
    Format("int4 in int8 (w4a8)", layers=of_all("asym_w4a8_int8")),
    Format("mixed: fp8 attention, nvfp4 MLP", layers=(("mlp", NVFP4), ("linear2", NVFP4), ("", FP8))),
    Format("GGUF Q8_0", "gguf", detail="Q8_0"),
    Format("GGUF Q4_0", "gguf", detail="Q4_0"),
)


def missing(host: Any, form: Format) -> str | None:
    """Why this host has not got a format, in words; None if it has."""
    if form.kind == "gguf":
        return None if gguf_loader(host) else f"{GGUF_PACK} is not installed"
    algorithms = getattr(__import__("comfy.quant_ops", fromlist=["x"]), "QUANT_ALGOS", {})
    lacking = sorted({algorithm.name for _, algorithm in form.layers} - set(algorithms))
    return f"this ComfyUI has no {', '.join(lacking)}" if lacking else None


def write_model(host: Any, form: Format, tensors: Mapping[str, Tensor], name: str) -> Callable[[], Any]:
    """Writes a model file in a format.

    Args:
        tensors: The model in bf16, in ComfyUI's names.
        name: Stem of the file.

    Returns:
        Loads it by the host's own node, as often as it is called.
    """
    folder = host.base / "models" / "diffusion_models"
    if form.kind == "gguf":
        file = write_gguf(folder / f"{name}.gguf", tensors, form.detail)
        loader = gguf_loader(host)
        assert loader is not None
        return lambda: run_node(loader, unet_name=file)[0]
    make = {"comfy_quant": lambda: quantised(form, tensors), "scaled": lambda: scaled(tensors), "cast": lambda: tensors}
    contents = {key: tensor.contiguous() for key, tensor in make[form.kind]().items()}
    save_file(contents, folder / f"{name}.safetensors")
    dtype = form.detail if form.kind == "cast" else "default"
    node = host.stock("UNETLoader")
    return lambda: run_node(node, unet_name=f"{name}.safetensors", weight_dtype=dtype)[0]


def is_quantised(key: str, tensor: Tensor) -> bool:
    """Whether published files quantise this tensor: the large layers of the blocks."""
    return key.endswith(".weight") and tensor.ndim == 2 and "blocks" in key and not any(part in key for part in SKIPPED)


def quantised(form: Format, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A comfy_quant file's tensors: each layer quantised by its layout, and the format beside it."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not is_quantised(key, tensor):
            found[key] = tensor
            continue
        algorithm = next(algorithm for word, algorithm in form.layers if word in key)
        layout = QUANT_ALGOS[algorithm.name]["comfy_tensor_layout"]
        made = QuantizedTensor.from_float(tensor, layout, **algorithm.options)
        found |= made.state_dict(key)
        stated = json.dumps({"format": algorithm.name, **algorithm.stated}).encode()
        found[f"{key.removesuffix('weight')}comfy_quant"] = torch.tensor(list(stated), dtype=torch.uint8)
    return found


def scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file of fp8 with a scale for each layer, from before comfy_quant."""
    # Two entries: the host computes in full precision, as a CPU needs.
    found: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in tensors.items():
        if not is_quantised(key, tensor):
            found[key] = tensor
            continue
        scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
        found[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        found[f"{key.removesuffix('weight')}scale_weight"] = scale.reshape(())
    return found


def gguf_loader(host: Any) -> type | None:
    """The GGUF pack's own loader; None if the pack or its library is not installed."""
    if "UnetLoaderGGUF" not in host.nodes.NODE_CLASS_MAPPINGS:
        folder = Path(sys.modules["nodes"].__file__ or "").parent / "custom_nodes" / GGUF_PACK
        try:
            import gguf  # noqa: F401
        except ImportError:
            return None
        if not folder.is_dir() or not host.load_pack(folder).accepted:
            return None
    return host.stock("UnetLoaderGGUF")


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str) -> str:
    """Writes a GGUF file with the blocks' weights in a quantisation that gguf's Python can make; returns its name."""
    import gguf

    writer = gguf.GGUFWriter(str(path), arch="flux")
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        if tensor.ndim == 2 and "blocks" in name:
            writer.add_tensor(name, gguf.quants.quantize(data, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.name
