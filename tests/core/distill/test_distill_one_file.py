"""A model from one file, in the names that ComfyUI users have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core import ClearSpec
from clear_core.distill.one_file import load_one_file, read_config
from clear_core.distill.pair import Pair
from demo.tiny_flux.weights import MODEL_FILE, load_tiny_flux
from demo.tiny_sd3.weights import MODEL_FILE as SD3_FILE
from demo.tiny_sd3.weights import load_tiny_sd3
from tests.support.diffusers_relatives import RELATIVES


@pytest.mark.parametrize("file, stock", [(MODEL_FILE, load_tiny_flux), (SD3_FILE, load_tiny_sd3)], ids=["FLUX", "SD3"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_shipped_models_load(tmp_path: Path, file: Path, stock: object, prefix: str):
    path = tmp_path / "model.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, path)
    model = load_one_file(path, torch.float32)
    wanted = stock().state_dict()
    assert model.state_dict().keys() == wanted.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert not model.training and read_config(path)[0].name in ("FLUX.1", "SD3.5")


def test_qwen_has_the_same_names(tmp_path: Path):
    model = RELATIVES["Qwen-Image"].build()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "q.safetensors")
    again = load_one_file(tmp_path / "q.safetensors", torch.float32)
    inputs = RELATIVES["Qwen-Image"].call((4, 6))
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])


def test_flux2_under_its_authors_names(tmp_path: Path):
    model = RELATIVES["FLUX.2"].build()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
    }
    file: dict[str, torch.Tensor] = {}
    for index in range(model.config["num_layers"]):
        for theirs, ours in (("img_attn", "to_{}"), ("txt_attn", "add_{}_proj")):
            parts = [state.pop(f"transformer_blocks.{index}.attn.{ours.format(part)}.weight") for part in "qkv"]
            file[f"double_blocks.{index}.{theirs}.qkv.weight"] = torch.cat(parts)
    file["final_layer.adaLN_modulation.1.weight"] = torch.cat(state.pop("norm_out.linear.weight").chunk(2)[::-1])
    for name, tensor in state.items():
        layer, end = name.rsplit(".", 1)
        block = ""
        if layer.startswith(("transformer_blocks.", "single_transformer_blocks.")):
            stack, index, layer = layer.split(".", 2)
            block = f"{'double' if stack == 'transformer_blocks' else 'single'}_blocks.{index}."
        is_single = block.startswith("single")
        norm = {"attn.norm_q": "query_norm", "attn.norm_k": "key_norm"}.get(layer)
        renamed = f"{'' if is_single else 'img_attn.'}norm.{norm}" if norm else names[layer]
        is_norm = norm or "norm_added" in layer
        file[f"{block}{renamed}.{'scale' if is_norm else end}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in file.items()}, tmp_path / "flux2.safetensors")
    again = load_one_file(tmp_path / "flux2.safetensors", torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    inputs = RELATIVES["FLUX.2"].call((4, 6))
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])


def broken(tmp_path: Path, change: object) -> Path:
    tensors = load_file(MODEL_FILE)
    change(tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("img_in.weight"), "looks like a FLUX.1 but lacks"),
        (
            lambda t: t.pop("single_blocks.1.linear2.bias"),
            "looks like a FLUX.1 but lacks 'single_blocks.1.linear2.bias'",
        ),
        (lambda t: t.update(a_scale=torch.ones(1)) or t.update({"x.scale_weight": torch.ones(1)}), "is quantised"),
        (lambda t: t.update({"img_in.weight": t["img_in.weight"].to(torch.int8)}), "is quantised .*set base to"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("vector")], "is no model of Chroma, FLUX.2, FLUX.1"),
    ],
    ids=["no input", "a missing layer", "scaled", "int8", "another family"],
)
def test_other_files_are_refused_in_words(tmp_path: Path, change: object, words: str):
    with pytest.raises(ValueError, match=f"broken.safetensors {words}"):
        load_one_file(broken(tmp_path, change), torch.float32)


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="model.gguf is not a safetensors file.*a GGUF is quantised"):
        load_one_file(tmp_path / "model.gguf", torch.float32)
    (tmp_path / "cut.safetensors").write_bytes(MODEL_FILE.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read"):
        load_one_file(tmp_path / "cut.safetensors", torch.float32)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_model_that_is_fed_a_mask_is_refused(tmp_path: Path, kind: str):
    """As FLUX.1 Fill: 64 channels of noise, and 320 of picture and mask."""
    model = load_tiny_flux()
    if kind == "folder":
        from diffusers import FluxTransformer2DModel

        config = {name: value for name, value in model.config.items() if not name.startswith("_")}
        model = FluxTransformer2DModel(**config | {"in_channels": 6 * config["in_channels"], "out_channels": 64})
    else:

        def widen(tensors: dict[str, torch.Tensor]) -> None:
            tensors["img_in.weight"] = tensors["img_in.weight"].repeat(1, 6)

        model = load_one_file(broken(tmp_path, widen), torch.float32)
    with pytest.raises(ValueError, match="the model takes 384 channels and gives 64: it is fed a picture or a mask"):
        Pair(model, ClearSpec(2))
