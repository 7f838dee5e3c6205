"""Distilled weights in a real ComfyUI: exactly the trained slices, whatever else patches the model."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.support_comfy import flux, golden
from tests.host.support_comfy.sampling import conditioning, relative_error, run_node

SIGMA = 0.6
LOCAL, POOLED = golden.GOLDEN / "student_7_down1.safetensors", golden.GOLDEN / "student_8_down4.safetensors"


@pytest.fixture
def students(clear_folder) -> dict[str, str]:
    """The golden students under published names; widget values by kind."""
    names = {"local": "clear_local_3.safetensors", "pooled": "clear_local_3_down_4.safetensors"}
    for kind, source in (("local", LOCAL), ("pooled", POOLED)):
        (clear_folder / names[kind]).write_bytes(source.read_bytes())
    return names


def prompt() -> list:
    generator = torch.Generator().manual_seed(2)
    return conditioning(torch.randn(1, 9, 32, generator=generator), torch.randn(1, 16, generator=generator))


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 20, 24, generator=torch.Generator().manual_seed(1))


def unload() -> None:
    """Have the host take every loaded clone's patches off the shared weights."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


def state(patcher: Any) -> dict[str, torch.Tensor]:
    """The model's weights with this clone's patches applied, then taken off again."""
    unload()
    patcher.patch_model()
    out = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    return out


def place(patcher: Any, name: str) -> tuple[str, slice]:
    """Key in the model and rows of a diffusers name."""
    import comfy.utils

    where = comfy.utils.flux_to_diffusers(patcher.model.model_config.unet_config)[name]
    key, (_, start, length) = (where, (0, 0, None)) if isinstance(where, str) else where
    return key, slice(start, None if length is None else start + length)


def replaced(patcher: Any, file: Path, blend: Any) -> dict[str, torch.Tensor]:
    """The base's weights with ``blend(base, new)`` in every trained slice."""
    unload()
    weights = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    for name, new in load_file(file).items():
        if "spatial_weight" not in name:
            key, rows = place(patcher, name)
            target = weights["diffusion_model." + key][rows]
            target.copy_(blend(target, new))
    return weights


def identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lora_file(host: Any, patcher: Any, seed: int = 0) -> str:
    """A LoRA on fused, sliced and untrained weights, for the stock loader."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, rows, columns in (
        ("transformer.transformer_blocks.0.attn.to_q", 64, 64),
        ("transformer.transformer_blocks.0.attn.to_out.0", 64, 64),
        ("transformer.single_transformer_blocks.1.attn.to_v", 64, 64),
        ("transformer.single_transformer_blocks.0.proj_mlp", 256, 64),
        ("transformer.transformer_blocks.0.attn.add_k_proj", 64, 64),
    ):
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"] = torch.randn(4, 64, generator=generator)
    tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"] = torch.randn(192, 4, generator=generator) * 0.1
    save_file(tensors, host.base / "models" / "loras" / f"lora_{seed}.safetensors")
    return f"lora_{seed}.safetensors"


def with_lora(host: Any, patcher: Any, seed: int = 0) -> Any:
    return run_node(
        host.stock("LoraLoaderModelOnly"), model=patcher, lora_name=lora_file(host, patcher, seed), strength_model=0.8
    )[0]


@pytest.mark.parametrize("kind", ["local", "pooled"])
def test_strength_blends_exactly_the_trained_slices(golden_flux, clear_node, students, kind):
    source = LOCAL if kind == "local" else POOLED
    full = clear_node(golden_flux, weights_name=students[kind])
    assert identical(state(full), replaced(golden_flux, source, lambda base, new: new))
    none = clear_node(golden_flux, weights_name=students[kind], strength=0.0)
    assert identical(state(none), replaced(golden_flux, source, lambda base, new: base))
    half = state(clear_node(golden_flux, weights_name=students[kind], strength=0.5))
    expected = replaced(golden_flux, source, lambda base, new: 0.5 * base + 0.5 * new)
    assert all((half[name] - expected[name]).abs().max() <= 1e-6 for name in expected)


def test_spatial_weights_blend_with_the_mean(pack, host_part, golden_flux, clear_node, students, predict):
    """At strength 0 the pooled variant is the base with plain means."""
    settings = import_module(f"{pack.__name__}.clear_core.settings")
    pooled = settings.ClearSettings(settings.ClearSpec(3, 4))
    plain = host_part("model.apply").apply_clear(golden_flux, pooled)
    nothing = clear_node(golden_flux, weights_name=students["pooled"], strength=0.0)
    assert relative_error(predict(nothing, noise(), SIGMA, prompt()), predict(plain, noise(), SIGMA, prompt())) < 1e-6
    full = clear_node(golden_flux, weights_name=students["pooled"])
    assert relative_error(predict(full, noise(), SIGMA, prompt()), predict(plain, noise(), SIGMA, prompt())) > 1e-3


def test_a_file_without_spatial_weight_pools_by_the_mean(golden_flux, clear_node, students, predict):
    pooled = clear_node(golden_flux, weights_name=students["local"], down_factor=4)
    local = clear_node(golden_flux, weights_name=students["local"])
    assert relative_error(predict(pooled, noise(), SIGMA, prompt()), predict(local, noise(), SIGMA, prompt())) > 1e-4
    with pytest.raises(ValueError, match=r"down_factor is 2, but .* 4"):
        clear_node(golden_flux, weights_name=students["pooled"], down_factor=2)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_lora_before_is_a_lora_after_bit_for_bit(host, golden_flux, clear_node, students, strength):
    widgets = {"weights_name": students["pooled"], "strength": strength}
    before = clear_node(with_lora(host, golden_flux), **widgets)
    after = with_lora(host, clear_node(golden_flux, **widgets))
    between = with_lora(host, clear_node(with_lora(host, golden_flux, 1), **widgets))
    around = with_lora(host, with_lora(host, clear_node(golden_flux, **widgets), 1))
    assert identical(state(before), state(after))
    assert identical(state(between), state(around))
    assert not identical(state(before), state(clear_node(golden_flux, **widgets)))


def merged(host: Any, patcher: Any, ratio: float) -> Any:
    """What ModelMergeSimple makes of a model and another one of the same kind."""
    other = patcher.clone()
    generator = torch.Generator().manual_seed(3)
    other.add_patches(
        {
            name: ("diff", (torch.randn(weight.shape, generator=generator) * 0.05,))
            for name, weight in patcher.model.state_dict().items()
        },
        1.0,
    )
    return run_node(host.stock("ModelMergeSimple"), model1=patcher, model2=other, ratio=ratio)[0]


def test_a_merge_before_does_not_thin_the_weights_out(host, golden_flux, clear_node, students):
    """The merge scales what is patched before it; the trained slices are the file's all the same."""
    both = merged(host, golden_flux, 0.5)
    plain = state(both)
    weights = state(clear_node(both, weights_name=students["local"]))
    expected = dict(plain)
    for name, new in load_file(LOCAL).items():
        key, rows = place(golden_flux, name)
        expected["diffusion_model." + key] = expected["diffusion_model." + key].clone()
        expected["diffusion_model." + key][rows].copy_(new)
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)
    assert not identical(plain, state(golden_flux))


def test_a_lora_after_a_merge_is_kept(host, golden_flux, clear_node, students):
    before = clear_node(with_lora(host, merged(host, golden_flux, 0.5)), weights_name=students["local"])
    after = with_lora(host, clear_node(merged(host, golden_flux, 0.5), weights_name=students["local"]))
    one, other = state(before), state(after)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_removing_the_node_restores_every_tensor(host, golden_flux, clear_node, students, predict):
    lora = with_lora(host, golden_flux)
    plain = {name: tensor.clone() for name, tensor in golden_flux.model.state_dict().items()}
    wanted = predict(lora, noise(), SIGMA, prompt())
    predict(clear_node(lora, weights_name=students["pooled"]), noise(), SIGMA, prompt())
    assert torch.equal(predict(lora, noise(), SIGMA, prompt()), wanted)
    predict(golden_flux, noise(), SIGMA, prompt())
    assert identical(dict(golden_flux.model.state_dict()), plain)


def test_what_runs_is_told_with_file_and_strength(golden_flux, pack, clear_node, students):
    """A part of CLEARUpscale's ``info``, by which a run is repeated."""
    words = import_module(f"{pack.__name__}.nodes.host.upscale.info").attention_words
    patched = clear_node(
        clear_node(golden_flux, weights_name=students["local"]), weights_name=students["pooled"], strength=0.6
    )
    assert f"weights {students['pooled']} at strength 0.6" in words(patched)
    assert students["local"] not in words(patched)
    assert "weights none" in words(clear_node(patched, weights_name="none", radius=4))


def test_two_files_in_one_graph_do_not_meet(golden_flux, clear_node, students, predict):
    local = clear_node(golden_flux, weights_name=students["local"])
    pooled = clear_node(golden_flux, weights_name=students["pooled"])
    alone = [predict(model, noise(), SIGMA, prompt()) for model in (local, pooled)]
    for _ in range(2):
        for model, expected in zip((local, pooled), alone, strict=True):
            assert torch.equal(predict(model, noise(), SIGMA, prompt()), expected)
    assert not torch.equal(*alone)
    assert identical(state(local), replaced(golden_flux, LOCAL, lambda base, new: new))


def test_a_series_keeps_the_last_files_weights_and_every_lora(host, golden_flux, clear_node, students):
    series = clear_node(
        with_lora(host, clear_node(golden_flux, weights_name=students["local"])), weights_name=students["pooled"]
    )
    expected = with_lora(host, clear_node(golden_flux, weights_name=students["pooled"]))
    assert identical(state(series), state(expected))


def test_a_delta_is_the_replacement_on_its_own_base_and_adds_on_another(
    host, golden_flux, pack, clear_node, clear_folder, students
):
    import_module(f"{pack.__name__}.clear_core.weights.delta").save_delta(
        [golden.GOLDEN / "base.safetensors"], clear_folder / students["pooled"], clear_folder / "delta_3.safetensors"
    )
    widgets = {"weights_name": "delta_3.safetensors"}
    on_base, expected = state(clear_node(golden_flux, **widgets)), replaced(golden_flux, POOLED, lambda base, new: new)
    assert all(torch.allclose(on_base[name], expected[name], rtol=1e-6, atol=1e-6) for name in expected)
    half = state(clear_node(golden_flux, strength=0.5, **widgets))
    between = replaced(golden_flux, POOLED, lambda base, new: 0.5 * base + 0.5 * new)
    assert all(torch.allclose(half[name], between[name], rtol=1e-6, atol=1e-6) for name in between)

    both = merged(host, golden_flux, 0.5)
    on_merged, plain = state(clear_node(both, **widgets)), state(both)
    base = {name: tensor.clone() for name, tensor in golden_flux.model.state_dict().items()}
    for name in plain:
        assert torch.allclose(on_merged[name], plain[name] + (expected[name] - base[name]), rtol=1e-6, atol=1e-6), name
    flux.fill_weights(golden_flux.model.diffusion_model, seed=9)
    other = {name: tensor.clone() for name, tensor in golden_flux.model.state_dict().items()}
    on_other = state(clear_node(golden_flux, **widgets))
    for name in other:
        assert torch.allclose(on_other[name], other[name] + (expected[name] - base[name]), rtol=1e-6, atol=1e-6), name


def test_the_delta_as_a_lora_is_the_students_weights_in_the_stock_loader(host, golden_flux, pack):
    """Full rank, so that nothing is left out but the biases, which a LoRA cannot hold."""
    lora = host.base / "models" / "loras" / "student.safetensors"
    named = host.base / "clear_local_7.safetensors"
    named.write_bytes(LOCAL.read_bytes())
    import_module(f"{pack.__name__}.clear_core.weights.lora").save_lora(
        [golden.GOLDEN / "base.safetensors"], named, lora, 64
    )
    loaded = state(
        run_node(host.stock("LoraLoaderModelOnly"), model=golden_flux, lora_name=lora.name, strength_model=1.0)[0]
    )
    expected = replaced(golden_flux, LOCAL, lambda base, new: new if new.ndim == 2 else base)
    assert all(torch.allclose(loaded[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)


def test_partial_loading_is_full_loading_bit_for_bit(host, golden_flux, clear_node, students, predict, monkeypatch):
    """The usual path on 12 to 24 GB cards: weights are patched each time they are cast for use."""
    import comfy.model_management as management

    patched = with_lora(host, clear_node(golden_flux, weights_name=students["pooled"], strength=0.7))
    full = predict(patched, noise(), SIGMA, prompt())
    unload()

    load = management.LoadedModel.model_load
    monkeypatch.setattr(
        management.LoadedModel, "model_load", lambda self, lowvram_model_memory=0, **kwargs: load(self, 0.1, **kwargs)
    )
    at_cast: list[int] = []

    def count_patches(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        at_cast.extend(len(getattr(module, "weight_function", ())) for module in golden_flux.model.modules())
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key("apply_model", "count", count_patches)
    assert torch.equal(predict(patched, noise(), SIGMA, prompt()), full)
    assert sum(at_cast) > 0, "nothing was patched at its cast, so this did not test partial loading"
    unload()
