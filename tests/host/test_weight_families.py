"""Weights that users distil for other families than FLUX.1, in full, as a delta and of low rank."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.families import FAMILIES, TinyFamily
from tests.host.support_comfy.family_oracle import denoised
from tests.host.support_comfy.sampling import relative_error, run_node
from tests.support.trained_files import random_factors, random_tensors, save_random, whole_change

CLOSE = 1e-5
NAMES = {"FLUX.1": "FLUX.1", "Chroma": "Chroma", "FLUX.2 klein": "FLUX.2", "Qwen-Image": "Qwen-Image", "SD3.5": "SD3.5"}
KINDS = ("replace", "delta", "lora")


@pytest.fixture(params=list(NAMES))
def family(request, host) -> TinyFamily:
    return FAMILIES[request.param]


@pytest.fixture
def name(request) -> str:
    """The family's, as in a file's header."""
    return NAMES[request.node.callspec.params["family"]]


@pytest.fixture
def weights(pack) -> Any:
    return import_module(f"{pack.__name__}.clear_core.weights")


@pytest.fixture
def sizes(family, host_part) -> tuple[int, int, int]:
    shape = host_part("model.family").model_shape(family.kind.build())
    return shape.width, shape.num_double, shape.num_single


@pytest.fixture
def saved(family, name, weights, sizes, clear_folder):
    """``saved(kind, d=1)`` writes a file of random weights and returns its widget value."""

    def save(kind: str, d: int = 1) -> str:
        out = clear_folder / f"{kind}_{d}.safetensors"
        save_random(weights, out, name, kind, sizes, d)
        return out.name

    return save


def place(state: dict[str, torch.Tensor], name: str, width: int) -> torch.Tensor:
    """The part of a model's weights that a canonical name means, written down by hand."""
    stem, index, _, rest = name.split(".", 3)
    part, end = rest.rsplit(".", 1)
    if f"diffusion_model.{name}" in state:  # Qwen-Image
        return state[f"diffusion_model.{name}"]
    single, sd3 = stem.startswith("single"), "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight" in state
    block = f"diffusion_model.{'joint' if sd3 else 'single' if single else 'double'}_blocks.{index}"
    attn = f"{block}.x_block.attn" if sd3 else f"{block}.img_attn"
    if part == "to_out.0":
        return state[f"{attn}.proj.{end}"]
    row = ("to_q", "to_k", "to_v").index(part)
    return state[f"{block}.linear1.{end}" if single else f"{attn}.qkv.{end}"][row * width : (row + 1) * width]


def by_hand(model: Any, name: str, kind: str, weights: Any, sizes: tuple[int, int, int], strength: float = 1.0) -> Any:
    """The model with the file's weights set by hand."""
    tensors = random_tensors(weights.TRAINED_SETS[name], *sizes)
    change = whole_change(*random_factors(tensors))
    state = model.model.state_dict()
    with torch.no_grad():
        for key, tensor in tensors.items():
            own = place(state, key, sizes[0])
            own.copy_((1 - strength) * own + strength * tensor if kind == "replace" else own + strength * change[key])
    return model


def lora_node(host: Any, model: Any, name: str, weights: Any, sizes: tuple[int, int, int]) -> Any:
    """The stock LoRA loader's, of a LoRA on the trained layers, in diffusers' names."""
    factors, _ = random_factors(random_tensors(weights.TRAINED_SETS[name], *sizes), rank=2, seed=23)
    tensors = {f"transformer.{layer}.lora_A.weight": down for layer, (down, _) in factors.items()}
    tensors |= {f"transformer.{layer}.lora_B.weight": up for layer, (_, up) in factors.items()}
    out = f"{name}.safetensors"
    save_file(tensors, host.base / "models" / "loras" / out)
    return run_node(host.stock("LoraLoaderModelOnly"), model=model, lora_name=out, strength_model=0.8)[0]


def state_of(patcher: Any) -> dict[str, torch.Tensor]:
    """The model's weights with a clone's patches applied, then taken off again."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    patcher.patch_model()
    found = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    return found


def differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_one_whose_weights_are_set_by_hand(
    family, name, clear_node, weights, sizes, saved, kind, strength
):
    x, prompt = family.noise((7, 9)), family.prompt()
    model = family.kind.build()
    with Recorder() as log:
        patched = clear_node(model, weights_name=saved(kind), strength=strength)
        found = denoised(patched, x, prompt)
    assert not [line for line in log.messages() if "training-free" in line]
    hand = by_hand(family.kind.build(), name, kind, weights, sizes, strength)
    expected = denoised(clear_node(hand, radius=3), x, prompt)
    assert relative_error(found, expected) < CLOSE
    assert differences(state_of(patched), dict(hand.model.state_dict())) < CLOSE
    assert relative_error(denoised(clear_node(model, radius=3), x, prompt), expected) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_weights_come_with_the_file(family, name, clear_node, weights, sizes, saved, clear_folder, kind):
    """On a model set by hand, a delta of zeros with the same pooling weights."""
    x, prompt = family.noise((7, 10)), family.prompt()
    found = denoised(clear_node(family.kind.build(), weights_name=saved(kind, 2)), x, prompt)
    file = weights.read_clear_file(clear_folder / f"{kind}_2.safetensors")
    nothing = {key: torch.zeros_like(tensor) for key, tensor in file.tensors().items()}
    header = weights.ClearHeader(3, 2, "delta", family=name)
    weights.save_clear_file(clear_folder / "zero.safetensors", nothing, file.spatial_weights(), header)
    hand = by_hand(family.kind.build(), name, kind, weights, sizes)
    assert relative_error(found, denoised(clear_node(hand, weights_name="zero.safetensors"), x, prompt)) < CLOSE
    assert relative_error(found, denoised(clear_node(hand, radius=3), x, prompt)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_before_is_a_lora_after(host, family, name, clear_node, weights, sizes, saved, kind):
    model, file = family.kind.build(), saved(kind)
    before = state_of(clear_node(lora_node(host, model, name, weights, sizes), weights_name=file))
    after = state_of(lora_node(host, clear_node(model, weights_name=file), name, weights, sizes))
    assert differences(before, after) == 0
    hand = lora_node(host, by_hand(family.kind.build(), name, kind, weights, sizes), name, weights, sizes)
    assert differences(before, state_of(hand)) < CLOSE
    assert differences(before, state_of(clear_node(model, weights_name=file))) > 1e-2


def test_three_forms_of_one_change_are_one_model(family, name, clear_node, weights, sizes, saved, clear_folder):
    """Merged into the weights, as their difference, and as its two factors."""
    x, prompt, model = family.noise((7, 9)), family.prompt(), family.kind.build()
    tensors = random_tensors(weights.TRAINED_SETS[name], *sizes)
    change, state = whole_change(*random_factors(tensors)), model.model.state_dict()
    whole = {key: place(state, key, sizes[0]).clone() + change[key] for key in tensors}
    weights.save_clear_file(clear_folder / "merged.safetensors", whole, {}, weights.ClearHeader(3, family=name))
    merged, delta, lora = (
        denoised(clear_node(model, weights_name=file), x, prompt)
        for file in ("merged.safetensors", saved("delta"), saved("lora"))
    )
    assert relative_error(delta, merged) < CLOSE and relative_error(lora, merged) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_file_that_is_taken_off(family, clear_node, saved, kind):
    model, x, prompt = family.kind.build(), family.noise((7, 9)), family.prompt()
    plain = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    without = denoised(clear_node(model, radius=3), x, prompt)
    patched = clear_node(model, weights_name=saved(kind))
    denoised(patched, x, prompt)
    again = clear_node(patched, radius=3)
    assert again.patches == {} and model.patches == {}
    assert torch.equal(denoised(again, x, prompt), without)
    assert differences(dict(model.model.state_dict()), plain) == 0


@pytest.mark.parametrize("kind", ["delta", "lora"])
def test_a_model_that_carries_the_change_is_noticed(
    family, name, pack, clear_node, weights, sizes, saved, clear_folder, kind
):
    """By the overlap that the file's header states, on each host's own places of the weights."""
    measure = import_module(f"{pack.__name__}.clear_core.weights.overlap")
    file = weights.read_clear_file(clear_folder / saved(kind))
    plain, change = family.kind.build(), file.tensors()
    state = plain.model.state_dict()
    compared = measure.compared_names(change)
    found = measure.overlap((place(state, key, sizes[0]), change[key]) for key in compared)
    header = weights.ClearHeader(3, 1, kind, "", found, name)
    tensors = random_tensors(weights.TRAINED_SETS[name], *sizes)
    factors, biases = random_factors(tensors)
    out = clear_folder / "stated.safetensors"
    if kind == "lora":
        weights.save_clear_lora(out, factors, biases, {}, header)
    else:
        weights.save_clear_file(out, whole_change(factors, biases), {}, header)
    carrying = by_hand(family.kind.build(), name, kind, weights, sizes)
    for model, words in ((plain, False), (carrying, True)):
        with Recorder() as log:
            clear_node(model, weights_name=out.name)
        assert any("carries about 100 % of it already" in line for line in log.messages()) == words


def test_low_rank_stays_low_rank_in_memory(family, clear_node, saved, sizes):
    """The host keeps the two factors, not their product."""
    patched = clear_node(family.kind.build(), weights_name=saved("lora"))
    held = [entry[1] for entries in patched.patches.values() for entry in entries]
    factors = [each.weights[:2] for each in held if not isinstance(each, tuple)]
    assert len(factors) == 4 * sizes[1] + 3 * sizes[2]
    assert {tuple(part.shape) for pair in factors for part in pair} == {(sizes[0], 3), (3, sizes[0])}
    assert all(each[1][0].ndim == 1 for each in held if isinstance(each, tuple))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_family_is_refused_by_both_names(
    family, name, clear_node, weights, sizes, clear_folder, kind
):
    """Of the same sizes: only the header tells them apart."""
    model = family.kind.build()
    for other in weights.TRAINED_SETS:
        if other == name:
            continue
        singles = (sizes[2] or 1) if "single" in weights.TRAINED_SETS[other].streams else 0
        save_random(weights, clear_folder / "other.safetensors", other, kind, (*sizes[:2], singles))
        with pytest.raises(ValueError, match="^other.safetensors was distilled for ") as caught:
            clear_node(model, weights_name="other.safetensors")
        assert f"for {other}, but the model is {name};" in str(caught.value) and "\n" not in str(caught.value)
        (clear_folder / "other.safetensors").unlink()
    assert model.patches == {} and model.wrappers == {}
