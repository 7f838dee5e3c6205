"""Distilled weights on quantised bases: fp8, scaled fp8, GGUF."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.support_comfy import formats
from tests.host.support_comfy.sampling import conditioning, relative_error, run_node

SIGMA = 0.6


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host's executor runs every node; its quantised tensors cannot be patched half in and half out of it."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tiny_file(host) -> Path:
    return host.base / "models" / "diffusion_models" / "tiny_flux.safetensors"


@pytest.fixture(scope="module")
def weights_name(host, pack, tiny_file) -> str:
    """A CLEAR file for the tiny FLUX: its own slices, moved by a third of their size."""
    generator = torch.Generator().manual_seed(5)
    base = load_file(tiny_file)
    trained = {}
    for stem, parts in trained_places():
        key, rows = parts
        for end in ("weight", "bias"):
            old = base[f"{key}.{end}"][rows]
            trained[f"{stem}.{end}"] = old + torch.randn(old.shape, generator=generator) * old.std() / 3
    weights = import_module(f"{pack.__name__}.clear_core.weights")
    weights.save_clear_file(
        host.base / "models" / "clear" / "clear_local_4.safetensors",
        {name: tensor.to(torch.bfloat16) for name, tensor in trained.items()},
        {},
        weights.ClearHeader(4),
    )
    return "clear_local_4.safetensors"


def trained_places() -> list[tuple[str, tuple[str, slice]]]:
    """Each trained layer of the tiny FLUX (width 256, 2 + 2 blocks): published name, and key and rows in its file."""
    out = []
    for index in range(2):
        for part, name in enumerate(("to_q", "to_k", "to_v")):
            rows = slice(part * 256, (part + 1) * 256)
            out.append((f"transformer_blocks.{index}.attn.{name}", (f"double_blocks.{index}.img_attn.qkv", rows)))
            out.append((f"single_transformer_blocks.{index}.attn.{name}", (f"single_blocks.{index}.linear1", rows)))
        out.append((f"transformer_blocks.{index}.attn.to_out.0", (f"double_blocks.{index}.img_attn.proj", slice(256))))
    return out


def prompt() -> list:
    generator = torch.Generator().manual_seed(2)
    return conditioning(torch.randn(1, 9, 64, generator=generator), torch.randn(1, 32, generator=generator))


def noise() -> torch.Tensor:
    return torch.randn(1, 16, 20, 24, generator=torch.Generator().manual_seed(1))


def load(host: Any, name: str, dtype: str = "default") -> Any:
    return run_node(host.stock("UNETLoader"), unet_name=name, weight_dtype=dtype)[0]


def merged_file(host: Any, weights_name: str, cast: Any, source: dict[str, torch.Tensor], name: str) -> str:
    """A whole model file with the trained slices put in and every weight passed through ``cast``."""
    trained = load_file(host.base / "models" / "clear" / weights_name)
    merged = {key: tensor.clone() for key, tensor in source.items()}
    for stem, (key, rows) in trained_places():
        for end in ("weight", "bias"):
            merged[f"{key}.{end}"][rows] = trained[f"{stem}.{end}"].to(merged[f"{key}.{end}"].dtype)
    save_file(
        {key: cast(key, tensor).contiguous() for key, tensor in merged.items()},
        host.base / "models" / "diffusion_models" / name,
    )
    return name


def test_an_fp8_base_is_the_merge_in_bf16_cast_to_fp8(
    host, tiny_file, weights_name, clear_node, predict, record_property
):
    base = load(host, tiny_file.name, "fp8_e4m3fn")
    assert base.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == torch.float8_e4m3fn
    merged = merged_file(
        host,
        weights_name,
        lambda key, tensor: tensor.to(torch.bfloat16),
        load_file(tiny_file),
        "tiny_merged.safetensors",
    )
    cast = clear_node(load(host, merged, "fp8_e4m3fn"), radius=4)
    exact = predict(clear_node(load(host, merged), radius=4), noise(), SIGMA, prompt())
    patched = clear_node(base, weights_name=weights_name)
    of_cast = relative_error(predict(cast, noise(), SIGMA, prompt()), exact)
    of_patch = relative_error(predict(patched, noise(), SIGMA, prompt()), exact)
    record_property("relative error of the cast to fp8", f"{of_cast:.4f}")
    record_property("relative error of patching the fp8 base", f"{of_patch:.4f}")
    # The host rounds patched weights stochastically: twice the variance of rounding to nearest, on some of them.
    assert of_patch < 1.5 * of_cast

    # Element by element: the patched weight lies within one fp8 step of the trained one.
    import comfy.model_management

    comfy.model_management.unload_all_models()
    patched.patch_model()
    trained = load_file(host.base / "models" / "clear" / weights_name)
    try:
        for stem, (key, rows) in trained_places():
            weight = patched.model.diffusion_model.get_parameter(f"{key}.weight")[rows].float()
            wanted = trained[f"{stem}.weight"].float()
            step = torch.maximum(wanted.abs(), torch.tensor(2.0**-6)).log2().floor().exp2() / 8
            assert ((weight - wanted).abs() <= step).all(), stem
    finally:
        patched.unpatch_model()


def test_a_scaled_fp8_base(host, tiny_file, weights_name, clear_node, predict, record_property):
    def write(source: dict[str, torch.Tensor], name: str) -> Any:
        return formats.write_model(host, formats.Format("fp8", "scaled"), source, name)()

    folder = host.base / "models" / "diffusion_models"
    merged = merged_file(host, weights_name, lambda key, tensor: tensor, load_file(tiny_file), "tiny_f32.safetensors")
    exact = predict(clear_node(load(host, merged), radius=4), noise(), SIGMA, prompt())
    cast = clear_node(write(load_file(folder / merged), "tiny_merged_scaled"), radius=4)
    base = write(load_file(tiny_file), "tiny_scaled")
    patched = clear_node(base, weights_name=weights_name)
    of_cast = relative_error(predict(cast, noise(), SIGMA, prompt()), exact)
    of_patch = relative_error(predict(patched, noise(), SIGMA, prompt()), exact)
    without = relative_error(predict(clear_node(base, radius=4), noise(), SIGMA, prompt()), exact)
    record_property("relative error of the cast to scaled fp8", f"{of_cast:.4f}")
    record_property("relative error of patching the scaled fp8 base", f"{of_patch:.4f}")
    assert of_patch < 1.5 * of_cast
    assert without > 3 * of_patch, "the weights must matter here"


@pytest.fixture(scope="module")
def gguf_loader(host, pack) -> type:
    """The GGUF pack's own loader, where that pack is installed in the checkout."""
    loader = formats.gguf_loader(host)
    if loader is None:
        pytest.skip(f"{formats.GGUF_PACK} or its library is not in this checkout")
    return loader


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_base(host, tiny_file, weights_name, clear_node, predict, gguf_loader, kind):
    """The GGUF pack patches what it dequantises, so the trained slices come in full precision."""
    folder = host.base / "models" / "diffusion_models"

    def load_gguf(name: str) -> Any:
        return run_node(gguf_loader, unet_name=name)[0]

    base_tensors = load_file(tiny_file)
    base = load_gguf(formats.write_gguf(folder / f"tiny_{kind}.gguf", base_tensors, kind))
    # The same base as an unquantised model, with the decoded weights.
    import gguf

    decoded = {}
    for tensor in gguf.GGUFReader(folder / f"tiny_{kind}.gguf").tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        decoded[tensor.name] = torch.from_numpy(values.copy()).reshape(base_tensors[tensor.name].shape)
    save_file(decoded, folder / f"tiny_{kind}_decoded.safetensors")
    merged = merged_file(host, weights_name, lambda key, tensor: tensor, decoded, f"tiny_{kind}_merged.safetensors")

    expected = predict(clear_node(load(host, merged), radius=4), noise(), SIGMA, prompt())
    patched = clear_node(base, weights_name=weights_name)
    assert relative_error(predict(patched, noise(), SIGMA, prompt()), expected) < 1e-3
    plain = predict(load(host, f"tiny_{kind}_decoded.safetensors"), noise(), SIGMA, prompt())
    assert relative_error(predict(base, noise(), SIGMA, prompt()), plain) < 1e-3
    assert relative_error(plain, expected) > 1e-2
