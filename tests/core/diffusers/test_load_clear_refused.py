"""Trained weights that a diffusers model cannot take: one sentence, and nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear, load_clear
from clear_core.weights import TRAINED_SETS, ClearFileError
from tests.support.diffusers_relatives import RELATIVES
from tests.support.loading import FLUX_SIZES, KINDS, refused
from tests.support.trained_files import random_tensors


def test_in_torchaos_8_bits_it_is_refused_by_the_layers_name(flux, saved, kind):
    ao = pytest.importorskip("torchao.quantization")
    # One late layer of all: nothing is written before it is found.
    last = flux.single_transformer_blocks[1].attn
    ao.quantize_(last, ao.Int8WeightOnlyConfig(), filter_fn=lambda layer, name: name == "to_v")
    with refused(flux, ValueError, r"^single_transformer_blocks\.1\.attn\.to_v\.weight is stored as torchao's "):
        load_clear(flux, saved(kind))


def test_in_bitsandbytes_8_bits_it_is_refused(flux, saved, kind):
    nn = pytest.importorskip("bitsandbytes").nn
    flux.transformer_blocks[0].attn.to_k = nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    with refused(flux, ValueError, r"attn\.to_k\.weight is stored as bitsandbytes's Int8Params"):
        load_clear(flux, saved(kind))


@pytest.mark.parametrize("first", KINDS)
def test_a_change_is_not_added_twice(flux, saved, first, kind):
    load_clear(flux, saved(first))
    if kind == "replace":
        load_clear(flux, saved(kind))
        trained = saved(kind).tensors()
        assert all(torch.equal(flux.state_dict()[name], trained[name]) for name in trained)
        return
    with refused(flux, ValueError, f"has the weights of FLUX.1_{first}_1.safetensors already; load the model"):
        load_clear(flux, saved(kind))


def test_a_file_of_another_model_is_refused(flux, saved, kind):
    with refused(flux, ClearFileError, r"was distilled for Chroma, but the model is FLUX\.1"):
        load_clear(flux, saved(kind, family="Chroma"))
    with refused(flux, ClearFileError, "this model has width 64"):
        load_clear(flux, saved(kind, sizes=(64, 2, 2)))
    with pytest.raises(TypeError, match="transformer is a Linear"):
        load_clear(torch.nn.Linear(2, 2), saved(kind))


def test_a_file_with_nan_changes_nothing(flux, saved, tmp_path):
    from safetensors.torch import load_file, save_file

    path = saved("replace").path
    state = load_file(path)
    state["single_transformer_blocks.1.attn.to_v.bias"][0] = torch.nan
    save_file(state, path)
    with refused(flux, ClearFileError, "NaN or infinite values in 1 tensors"):
        load_clear(flux, path)


def test_a_layer_that_is_not_diffusers_own_is_named(flux, saved):
    flux.single_transformer_blocks[1].attn.to_v = torch.nn.Linear(32, 64)
    with refused(flux, ValueError, r"^single_transformer_blocks\.1\.attn\.to_v\.weight is \(64, 32\), and "):
        load_clear(flux, saved("replace"))
    del flux.single_transformer_blocks[1].attn.to_v
    with refused(flux, ValueError, r"^single_transformer_blocks\.1\.attn\.to_v is not in this Flux"):
        load_clear(flux, saved("replace"))
    flux.single_transformer_blocks[1].attn.to_v = torch.nn.Linear(64, 64, bias=False)
    with refused(flux, ValueError, r"to_v\.bias is not in this model"):
        load_clear(flux, saved("replace"))


@pytest.mark.parametrize("spec", [ClearSpec(3), ClearSpec(3, 4), ClearSpec(3, 2, overview=True)], ids=str)
def test_a_clear_that_pools_otherwise_is_named(flux, saved, kind, spec):
    apply_clear(flux, spec)
    with refused(flux, ValueError, r"does not pool 2 x 2 tokens as .* was trained to; remove\(\) it"):
        load_clear(flux, saved(kind, 2))


def test_a_file_without_a_radius_says_so(flux, tmp_path):
    from safetensors.torch import save_file

    out = Path(tmp_path / "mine.safetensors")
    save_file(random_tensors(TRAINED_SETS["FLUX.1"], *FLUX_SIZES), out)
    loaded = load_clear(flux, out)
    assert "unknown radius" in str(loaded)
    with pytest.raises(ValueError, match="does not say which window radius"):
        loaded.spec  # noqa: B018  # raises


@pytest.mark.parametrize("name", ["FLUX.2", "FLUX.1"])
def test_rows_of_a_layer_in_4_bits_are_refused(flux, saved, name):
    """FLUX.2's single blocks and fused projections: what is beside the rows would be quantised a second time."""
    nn = pytest.importorskip("bitsandbytes").nn
    model = flux if name == "FLUX.1" else RELATIVES[name].build()
    model.fuse_qkv_projections()
    owner = model.transformer_blocks[0].attn if name == "FLUX.1" else model.single_transformer_blocks[0].attn
    layer = "to_qkv" if name == "FLUX.1" else "to_qkv_mlp_proj"
    whole = getattr(owner, layer).weight.data
    small = nn.Linear4bit(whole.shape[1], whole.shape[0], bias=False, compute_dtype=torch.float32)
    small.weight = nn.Params4bit(whole.clone(), requires_grad=False, quant_type="nf4").to("cpu")
    setattr(owner, layer, small)
    sizes = FLUX_SIZES if name == "FLUX.1" else (32, 1, 2)
    with refused(model, ValueError, rf"{layer}\.weight holds other rows too, in 4 bits"):
        load_clear(model, saved("replace", family=name, sizes=sizes))
