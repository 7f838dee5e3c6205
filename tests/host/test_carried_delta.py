"""A delta on a model that carries it already is noticed and said: in the log, in CLEAR Inspect and in ``info``."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file

from tests.host.support_comfy import flux, golden
from tests.host.support_comfy.sampling import run_node

DELTA = "delta_3.safetensors"


@pytest.fixture
def delta(clear_folder, pack) -> str:
    """The golden student minus the golden base."""
    student = clear_folder / "clear_local_3.safetensors"
    student.write_bytes((golden.GOLDEN / "student_7_down1.safetensors").read_bytes())
    save_delta = import_module(f"{pack.__name__}.clear_core.weights.delta").save_delta
    save_delta([golden.GOLDEN / "base.safetensors"], student, clear_folder / DELTA, force=True)
    return DELTA


@pytest.fixture
def saved(host, tmp_path):
    """``saved(model)`` is a fresh model with what the stock ModelSave wrote of this one."""

    def save_and_load(model):
        node = host.stock("ModelSave")()
        node.output_dir = str(tmp_path)
        node.save(model, "saved")
        state = load_file(max(tmp_path.rglob("*.safetensors")))
        fresh = flux.golden_flux()
        fresh.model.diffusion_model.load_state_dict(
            {name.removeprefix("model.").removeprefix("diffusion_model."): tensor for name, tensor in state.items()}
        )
        return fresh

    return save_and_load


@pytest.fixture
def said(host, pack, caplog):
    """``said(model)``: what the log said since the last call, after checking that all places say the same."""

    def texts(model) -> str:
        logged = " ".join(line for line in caplog.messages if "is added to a model that carries" in line)
        caplog.clear()
        info = import_module(f"{pack.__name__}.nodes.host.upscale.info")
        inspected = run_node(host.stock("CLEARInspect"), model=model)[1]
        lines = "\n".join(info.weight_lines(model))
        sentence = logged.removeprefix("CLEAR: ")
        assert (sentence in inspected and sentence in lines) if logged else "carries" not in inspected + lines
        return sentence

    return texts


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_model_saved_with_the_delta_and_loaded_again_is_noticed(
    golden_flux, clear_node, delta, saved, said, strength
):
    import comfy.model_management

    first = clear_node(golden_flux, weights_name=delta, strength=strength)
    assert said(first) == ""
    again = clear_node(saved(first), weights_name=delta)
    assert said(again) == (
        f"{delta} is added to a model that carries about {100 * strength:.0f} % of it already, as one does that was "
        "saved after CLEAR Attention; load the model without it, or set weights_name to none."
    )
    # The first model lies in memory with the delta in its weights; its own are meant.
    comfy.model_management.load_models_gpu([first])
    assert golden_flux.backup
    assert said(clear_node(golden_flux, weights_name=delta)) == ""


def test_the_delta_as_a_lora_before_the_node_is_noticed(host, golden_flux, clear_node, clear_folder, delta, said, pack):
    lora = host.base / "models" / "loras" / "carried.safetensors"
    save_lora = import_module(f"{pack.__name__}.clear_core.weights.lora").save_lora
    save_lora([golden.GOLDEN / "base.safetensors"], clear_folder / "clear_local_3.safetensors", lora, 64, force=True)
    loaded = run_node(host.stock("LoraLoaderModelOnly"), model=golden_flux, lora_name=lora.name, strength_model=1.0)[0]
    assert "carries about 100 % of it already" in said(clear_node(loaded, weights_name=delta))
    # A second node takes the first one's place, and the LoRA is still there.
    first = clear_node(golden_flux, weights_name=delta)
    assert said(clear_node(first, weights_name=delta)) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_model_in_few_bits_is_noticed_or_left_alone(golden_flux, clear_node, delta, saved, said, dtype):
    """Weights in 8 bits may be scaled, which changes what they add up to."""
    carrying = saved(clear_node(golden_flux, weights_name=delta))
    said(golden_flux)
    for parameter in carrying.model.diffusion_model.parameters():
        parameter.data = parameter.data.to(dtype)
    noticed = said(clear_node(carrying, weights_name=delta))
    assert ("carries about 100 % of it already" in noticed) == (dtype == torch.bfloat16)


def test_what_adds_no_delta_says_nothing(golden_flux, clear_node, delta, saved, said):
    carrying = saved(clear_node(golden_flux, weights_name=delta))
    said(golden_flux)
    assert said(clear_node(carrying, weights_name=delta, strength=0.0)) == ""
    assert said(clear_node(carrying, weights_name="clear_local_3.safetensors")) == ""
