"""Nodes of ComfyUI that patch the model.

Both orders: CLEARAttention before the other node, and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.support_comfy import flux
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import run_node

RADIUS, SIGMA = 3, 0.6


@pytest.fixture
def student(host: Any, pack: Any) -> str:
    """Distilled weights without pooling for the tiny FLUX, installed; the widget's value."""
    path = host.base / "models" / "clear" / "clear_local_3.safetensors"
    yield flux.write_student_file(path, seed=11).name
    path.unlink()


@pytest.fixture
def lora(host: Any) -> str:
    """A LoRA on attention and MLP of the tiny FLUX, installed; the loader's value."""
    generator = torch.Generator().manual_seed(21)
    width, weights = flux.TINY["hidden_size"], {}
    for name, rows in (
        ("double_blocks.0.img_attn.qkv", 3 * width),
        ("double_blocks.0.img_mlp.0", 4 * width),
        ("single_blocks.0.linear1", 7 * width),
    ):
        weights[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, width, generator=generator) * 0.1
        weights[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    path = host.base / "models" / "loras" / "tiny_lora.safetensors"
    save_file(weights, path)
    yield path.name
    path.unlink()


@pytest.fixture
def load_lora(stock: Callable[..., type], lora: str) -> Callable[[Any], Any]:
    """``load_lora(model)`` is what the stock loader makes of a model with the LoRA."""
    return lambda model: run_node(stock("LoraLoaderModelOnly"), model=model, lora_name=lora, strength_model=0.8)[0]


@pytest.fixture
def scheduled_prompt(stock: Callable[..., type], lora: str) -> list:
    """A prompt with the LoRA as a hook, at strength 0.2 in the first half of the sampling and 1.0 in the second."""
    (hooks,) = run_node(stock("CreateHookLoraModelOnly", "nodes_hooks"), lora_name=lora, strength_model=1.0)
    frames = None
    for strength, start in ((0.2, 0.0), (1.0, 0.5)):
        (frames,) = run_node(
            stock("CreateHookKeyframe", "nodes_hooks"), strength_mult=strength, start_percent=start, prev_hook_kf=frames
        )
    (hooks,) = run_node(stock("SetHookKeyframes", "nodes_hooks"), hooks=hooks, hook_kf=frames)
    return run_node(
        stock("PairConditioningSetProperties", "nodes_hooks"),
        positive_NEW=prompt(),
        negative_NEW=prompt(seed=4),
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )[0]


@pytest.fixture
def distilled(host: Any, tiny_flux: Callable[..., Any], student: str) -> Any:
    """The tiny FLUX with the student's weights in place of its own."""
    return merged(tiny_flux(), host.base / "models" / "clear" / student)


def merged(model: Any, student: Path) -> Any:
    """``model`` with the student's weights in place of its own."""
    import comfy.utils

    table = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
    with torch.no_grad():
        for name, new in load_file(student).items():
            key, (_, start, length) = table[name] if isinstance(table[name], tuple) else (table[name], (0, 0, None))
            end = None if length is None else start + length
            model.model.diffusion_model.get_parameter(key)[start:end] = new
    return model


@pytest.mark.row("LoRA loaders", "a LoRA adds to the distilled weights in either order")
@ORDERS
def test_lora(cell, tiny_flux, clear_node, predict, student, distilled, load_lora, order):
    def clear(model: Any) -> Any:
        return clear_node(model, weights_name=student)

    x = noise(12, 14)
    base = load_lora(distilled)
    cell.oracle(
        predict(in_order(order, tiny_flux(), clear, load_lora), x, SIGMA, prompt()),
        predict(with_oracle_windows(base, RADIUS), x, SIGMA, prompt()),
        predict(base, x, SIGMA, prompt()),
    )


@pytest.mark.row("Hook LoRAs and schedules", "they switch on the distilled weights as on any others")
@pytest.mark.parametrize("conditioned", ["whole prompt", "one of two"])
def test_hook_lora(cell, tiny_flux, clear_node, run, student, distilled, scheduled_prompt, conditioned):
    positive = scheduled_prompt if conditioned == "whole prompt" else scheduled_prompt + prompt(seed=6)
    latent = torch.zeros(1, 16, 12, 14)
    actual = run(clear_node(tiny_flux(), weights_name=student), positive, latent)
    expected = run(with_oracle_windows(distilled, RADIUS), positive, latent)
    cell.oracle(actual, expected, run(distilled, positive, latent))
    unhooked = [
        [context, {key: value for key, value in extra.items() if key != "hooks"}] for context, extra in positive
    ]
    assert (run(with_oracle_windows(distilled, RADIUS), unhooked, latent) - expected).norm() > 1e-2, (
        "the hook does nothing"
    )


@pytest.mark.row("Block patches (FreeU-like, skip-layer guidance)", "they see and change what they would without CLEAR")
@ORDERS
@pytest.mark.parametrize("kind", ["replaced block", "after the input", "skip-layer guidance"])
def test_block_patches(cell, tiny_flux, clear_node, run, stock, order, kind):
    def amplify(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.2}

    def brighten(args: dict[str, Any]) -> dict[str, Any]:
        return {**args, "img": args["img"] * 1.2}

    def patch(model: Any) -> Any:
        model = model.clone()
        if kind == "replaced block":
            model.set_model_patch_replace(amplify, "dit", "double_block", 1)
            model.set_model_patch_replace(amplify, "dit", "single_block", 0)
        elif kind == "after the input":
            model.set_model_patch(brighten, "post_input")
        else:
            (model,) = run_node(
                stock("SkipLayerGuidanceDiT", "nodes_slg"),
                model=model,
                double_layers="0",
                single_layers="1",
                scale=3.0,
                start_percent=0.0,
                end_percent=1.0,
                rescaling_scale=0.0,
            )
        return model

    model, graph = tiny_flux(), {"positive": prompt(), "latent": torch.zeros(1, 16, 12, 14), "cfg": 2.0}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), patch)
    windows = with_oracle_windows(model, RADIUS)
    expected = run(patch(windows), **graph)
    cell.oracle(run(patched, **graph), expected, run(patch(model), **graph))
    assert (run(windows, **graph) - expected).norm() > 1e-2, "the patch does nothing"


@pytest.mark.row("ModelSamplingFlux", "its shift is kept")
@ORDERS
def test_model_sampling(cell, model, clear_node, run, stock, order):
    def shift(model: Any) -> Any:
        return run_node(stock("ModelSamplingFlux"), model=model, max_shift=1.5, base_shift=0.5, width=112, height=96)[0]

    graph = {"positive": prompt(), "latent": torch.zeros(1, 16, 12, 14)}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), shift)
    expected = run(shift(with_oracle_windows(model, RADIUS)), **graph)
    cell.oracle(run(patched, **graph), expected, run(shift(model), **graph))
    assert (run(with_oracle_windows(model, RADIUS), **graph) - expected).norm() > 1e-3, "the shift does nothing"


@pytest.mark.row("ScaleROPE", "its positions are kept, and ntk_factor acts on them")
@ORDERS
@pytest.mark.parametrize("ntk", [1.0, 10.0])
def test_scale_rope(cell, model, clear_node, predict, stock, order, ntk):
    from comfy.ldm.flux.layers import EmbedND

    def scaled(model: Any) -> Any:
        return run_node(
            stock("ScaleROPE", "nodes_rope"),
            model=model,
            scale_x=0.5,
            shift_x=3.0,
            scale_y=0.7,
            shift_y=1.0,
            scale_t=1.0,
            shift_t=0.0,
        )[0]

    x = noise(12, 14)
    base = scaled(model)
    base.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * ntk, [16, 56, 56]))
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS, ntk_factor=ntk), scaled)
    cell.oracle(
        predict(patched, x, SIGMA, prompt()),
        predict(with_oracle_windows(base, RADIUS), x, SIGMA, prompt()),
        predict(base, x, SIGMA, prompt()),
    )


@pytest.mark.row("EasyCache, LazyCache", "they leave out the same steps and give the same picture")
@ORDERS
@pytest.mark.parametrize("name, threshold", [("EasyCache", 3.0), ("LazyCache", 0.4)], ids=["EasyCache", "LazyCache"])
def test_caches(cell, model, clear_node, run, stock, order, name, threshold):
    def cached(model: Any) -> Any:
        return run_node(
            stock(name, "nodes_easycache"),
            model=model,
            reuse_threshold=threshold,
            start_percent=0.1,
            end_percent=0.95,
            verbose=False,
        )[0]

    graph = {"positive": prompt(), "latent": torch.zeros(1, 16, 12, 14), "steps": 8}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), cached)
    expected = run(cached(with_oracle_windows(model, RADIUS)), **graph)
    with Recorder() as log:
        out = run(patched, **graph)
    cell.oracle(out, expected, run(cached(model), **graph))
    cell.silent(log.messages())
    assert (run(with_oracle_windows(model, RADIUS), **graph) - expected).norm() > 1e-3, "no step was left out"


@pytest.mark.row("TorchCompileModel", "radius and size take effect each time")
@pytest.mark.slow
@ORDERS
def test_compile(cell, model, clear_node, predict, stock, order):
    def compiled(model: Any) -> Any:
        return run_node(stock("TorchCompileModel", "nodes_torch_compile"), model=model, backend="eager")[0]

    for radius, size in ((2, (12, 14)), (4, (12, 14)), (2, (16, 14))):
        x = noise(*size)
        patched = in_order(order, model, partial(clear_node, radius=radius), compiled)
        cell.oracle(
            predict(patched, x, SIGMA, prompt()),
            predict(with_oracle_windows(model, radius), x, SIGMA, prompt()),
            predict(model, x, SIGMA, prompt()),
        )
