"""Trained weights on diffusers models in any state: the right numbers everywhere."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear, load_clear
from tests.support.diffusers_flux import call_inputs, relative, run
from tests.support.diffusers_relatives import RELATIVES
from tests.support.loading import FLUX_SIZES, add_adapter, assert_same, by_hand, expected_state, quantised_4bit, refused
from tests.support.trained_files import random_spatial

GRID = (6, 7)

# Kind of model in the tests' table, and its family.
MODELS = {"Chroma": "Chroma", "FLUX.2": "FLUX.2", "Qwen-Image": "Qwen-Image", "SD3.5 Medium": "SD3.5"}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_family_gets_exactly_its_tensors(saved, kind, name):
    family, model = MODELS[name], RELATIVES[name].build()
    doubles, singles = len(model.transformer_blocks), len(getattr(model, "single_transformer_blocks", ()))
    sizes = (32, doubles, singles)
    wanted = expected_state(model.state_dict(), kind, family, sizes)
    loaded = load_clear(model, saved(kind, family=family, sizes=sizes))
    assert_same(model.state_dict(), wanted)
    assert loaded.layers == 4 * doubles + 3 * singles
    assert loaded.spec == ClearSpec(3) and loaded.spatial_weights == {}


def test_flux_1_of_a_pipeline_by_the_files_path(flux, saved, kind):
    wanted = expected_state(flux.state_dict(), kind, "FLUX.1", FLUX_SIZES)
    loaded = load_clear(SimpleNamespace(transformer=flux), str(saved(kind, d=2).path))
    assert_same(flux.state_dict(), wanted)
    assert loaded.spec == ClearSpec(3, 2) and loaded.spatial_weights.keys() == random_spatial(1, 2).keys()
    assert str(loaded).startswith(f"FLUX.1_{kind}_2.safetensors: 10 layers of FLUX.1 ")


def test_a_model_in_16_bits_is_rounded_once(flux, saved, kind):
    file = saved(kind)
    wanted = expected_state({k: t.bfloat16().float() for k, t in flux.state_dict().items()}, kind, "FLUX.1", FLUX_SIZES)
    load_clear(flux.to(torch.bfloat16), file)
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in flux.state_dict().items())


def test_under_lora_adapters(flux, saved, kind):
    """Their layers keep the adapters, which add to the new weights."""
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    add_adapter(flux)
    load_clear(flux, saved(kind))
    add_adapter(by_hand(plain, kind))
    wanted = run(plain, inputs)
    assert relative(run(flux, inputs), wanted) < 1e-6
    flux.disable_adapters()
    assert relative(run(flux, inputs), wanted) > 1e-3
    plain.disable_adapters()
    assert relative(run(flux, inputs), run(plain, inputs)) < 1e-6


def test_under_merged_adapters_only_changes_are_added(flux, saved, kind):
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    add_adapter(flux)
    flux.fuse_lora()
    if kind == "replace":
        with refused(flux, ValueError, r"^transformer_blocks\.0\.attn\.to_q\.weight has LoRA adapters merged"):
            load_clear(flux, saved(kind))
        return
    load_clear(flux, saved(kind))
    flux.unfuse_lora()
    add_adapter(by_hand(plain, kind))
    assert relative(run(flux, inputs), run(plain, inputs)) < 1e-5


def test_a_low_rank_file_without_pooling_is_a_lora_of_diffusers_too(flux, saved):
    """The same picture by ``load_lora_adapter``, biases included."""
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    inputs, other, file = call_inputs(GRID), copy.deepcopy(flux), saved("lora")
    load_clear(flux, file)
    other.load_lora_adapter(load_file(file.path), prefix="transformer")
    assert relative(run(other, inputs), run(flux, inputs)) < 1e-5


@pytest.mark.parametrize("name", ["FLUX.1", "FLUX.2", "SD3"])
def test_fused_projections_and_those_beside_them(flux, saved, kind, name):
    if name == "FLUX.1":
        model, sizes, inputs, family = flux, FLUX_SIZES, call_inputs(GRID), name
    else:
        model, family = RELATIVES[name].build(), "SD3.5" if name == "SD3" else name
        sizes = (32, len(model.transformer_blocks), len(getattr(model, "single_transformer_blocks", ())))
        inputs = RELATIVES[name].call(GRID)
    plain = copy.deepcopy(model)
    model.fuse_qkv_projections()
    assert any(key.endswith(".to_qkv.weight") for key in model.state_dict())
    load_clear(model, saved(kind, family=family, sizes=sizes))
    wanted = run(by_hand(plain, kind, family, sizes), inputs)
    assert relative(run(model, inputs), wanted) < 1e-5
    model.unfuse_qkv_projections()
    assert relative(run(model, inputs), wanted) < 1e-5


@pytest.mark.parametrize("part", ["model", "block"])
def test_compiled_before(flux, saved, kind, part):
    """The compiled graphs of an earlier call go on with the new weights."""
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    if part == "block":
        flux.transformer_blocks[0] = torch.compile(flux.transformer_blocks[0], backend="eager")
    model = torch.compile(flux, backend="eager") if part == "model" else flux
    before = run(model, inputs)
    load_clear(model, saved(kind))
    found = run(model, inputs)
    assert relative(found, run(by_hand(plain, kind), inputs)) < 1e-6
    assert relative(found, before) > 1e-3


@pytest.mark.parametrize("settings", [{"quant_type": "nf4"}, {"quant_type": "fp4", "compress_statistics": False}])
def test_in_4_bits_a_layer_is_quantised_as_it_was(flux, saved, kind, settings):
    functional = pytest.importorskip("bitsandbytes.functional")
    inputs, plain = call_inputs(GRID), copy.deepcopy(flux)
    quantised_4bit(flux, **settings)
    if kind != "replace":
        # The change is added to what the quantised layer stands for.
        for own, layer in plain.named_modules():
            small = flux.get_submodule(own)
            if type(small).__name__ == "Linear4bit":
                layer.weight.data = functional.dequantize_4bit(small.weight.data, small.weight.quant_state)
    load_clear(flux, saved(kind))
    wanted = quantised_4bit(by_hand(plain, kind), **settings)
    # The text's layers of the second model were quantised twice.
    assert relative(run(flux, inputs), run(wanted, inputs)) < 1e-3
    trained = [name for name in flux.state_dict() if name.endswith("to_q.weight")]
    assert len(trained) == 3
    for name in trained:
        assert torch.equal(flux.state_dict()[name], wanted.state_dict()[name])


def test_what_layerwise_casting_stores_in_8_bits_is_rounded_to_them(flux, saved):
    flux.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    file = saved("replace")
    load_clear(flux, file)
    for name, tensor in file.tensors().items():
        found = flux.state_dict()[name]
        assert torch.equal(found.float(), tensor.to(found.dtype).float())
    assert flux.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert run(flux, call_inputs(GRID)).isfinite().all()


def test_pooling_weights_of_a_clear_that_is_on(flux, saved, kind):
    inputs, other, file = call_inputs(GRID), copy.deepcopy(flux), saved(kind, 2)
    apply_clear(flux, ClearSpec(3, 2))
    loaded = load_clear(flux, file)
    load_clear(other, file)
    apply_clear(other, loaded.spec, spatial_weights=loaded.spatial_weights)
    assert torch.equal(run(flux, inputs), run(other, inputs))
