"""Models that share FLUX.1's blocks get the window, marked experimental; all others are refused by their name."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

from tests.host.support_comfy import relatives
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.flux import TINY, build_flux
from tests.host.support_comfy.oracle import window_mask, with_oracle_attention
from tests.host.support_comfy.sampling import conditioning, relative_error

TEXT = 7
SIGMA = 0.6


def noise(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(text: int = TEXT, **extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


@pytest.fixture(params=["Chroma", "Ovis-Image", "LongCat-Image"])
def relative(host, request):
    """A fresh ModelPatcher."""
    import comfy.supported_models

    if request.param == "LongCat-Image" and not hasattr(comfy.supported_models, "LongCatImage"):
        pytest.skip("this ComfyUI does not know LongCat-Image")
    return {
        "Chroma": relatives.build_chroma,
        "Ovis-Image": relatives.build_ovis,
        "LongCat-Image": relatives.build_longcat,
    }[request.param]()


@pytest.mark.parametrize(
    "height, width, text, radius", [(20, 26, 7, 3), (19, 27, 7, 4), (8, 40, 1, 2)], ids=lambda value: str(value)
)
def test_the_window_is_the_methods(relative, clear_node, predict, height, width, text, radius):
    x, positive = noise(height, width), prompt(text)
    mask = window_mask(text, (math.ceil(height / 2), math.ceil(width / 2)), 0, radius)
    expected = predict(with_oracle_attention(relative, mask), x, SIGMA, positive)
    assert relative_error(predict(clear_node(relative, radius=radius), x, SIGMA, positive), expected) < 1e-5
    assert relative_error(predict(relative, x, SIGMA, positive), expected) > 1e-3


def test_scale_and_ntk_that_the_widgets_ask_for(relative, clear_node, predict):
    from comfy.ldm.flux.layers import EmbedND

    x, positive = noise(20, 26), prompt()
    scale = math.sqrt(math.log(TEXT + 130, 64 * 64 + 512) / 128)
    expected = with_oracle_attention(relative, window_mask(TEXT, (10, 13), 0, 3), scale)
    expected.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * 7.0, [16, 56, 56]))
    patched = clear_node(relative, radius=3, proportional_attention="on", ntk_factor=7.0)
    assert relative_error(predict(patched, x, SIGMA, positive), predict(expected, x, SIGMA, positive)) < 1e-5


def test_a_radius_past_the_grid_and_dense_blocks_are_the_stock_model(relative, clear_node, predict):
    x, positive = noise(20, 26), prompt()
    stock = predict(relative, x, SIGMA, positive)
    assert relative_error(predict(clear_node(relative, radius=100), x, SIGMA, positive), stock) < 1e-5
    assert torch.equal(predict(clear_node(relative, radius=3, dense_blocks="0-3"), x, SIGMA, positive), stock)


def test_chroma_does_not_look_at_reference_latents(host, clear_node, predict):
    chroma, x = relatives.build_chroma(), noise(12, 14)
    with_reference = prompt(reference_latents=[noise(6, 8, seed=3)])
    patched = clear_node(chroma, radius=3)
    with Recorder() as log:
        found = predict(patched, x, SIGMA, with_reference)
    assert torch.equal(found, predict(patched, x, SIGMA, prompt()))
    assert [line for line in log.messages() if "CLEAR" in line] == []


def test_memory_is_asked_for_blocks_that_are_not_chunked(host, pack, clear_node):
    """Chroma's blocks do not run in chunks, so the lower estimate for FLUX.1's would be wrong."""
    plan = importlib.import_module(f"{pack.__name__}.nodes.host.model.memory_plan").memory_plan
    chroma, flux = (plan(clear_node(model, radius=3)) for model in (relatives.build_chroma(), build_flux()))
    assert chroma.peak_bytes(160 * 160) > 1.2 * flux.peak_bytes(160 * 160)


def test_it_is_called_training_free_once(relative, clear_node, predict):
    with Recorder() as log:
        patched = clear_node(relative, radius=3)
        for _ in range(2):
            predict(patched, noise(12, 14), SIGMA, prompt())
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "training-free" in lines[0]


def test_distilled_weights_are_refused(relative, host, clear_node):
    name = "tiny/clear_local_4_down_2.safetensors"  # Of the same width and number of blocks.
    with pytest.raises(ValueError, match=r"was distilled for FLUX\.1, but the model is .*none for windows"):
        clear_node(relative, weights_name=name)
    assert relative.patches == {} and relative.wrappers == {}


@pytest.mark.parametrize(
    "model, why",
    [
        ("SDXL", "connect one of"),
        ("AuraFlow", "connect one of"),
        ("HunyuanVideo", "makes videos"),
        ("ErnieImage", "does not hand its attention to other nodes"),
        ("HiDreamO1", "one long sequence"),
        ("LTXV", "connect one of"),
    ],
)
def test_other_models_are_refused_by_name(host, tiny_flux, clear_node, model, why):
    import comfy.supported_models

    kind = getattr(comfy.supported_models, model, None)
    if kind is None:
        pytest.skip(f"this ComfyUI does not know {model}")
    other = tiny_flux()
    other.model.model_config = kind({**TINY, "image_model": None, **kind.unet_config})
    with pytest.raises(ValueError, match=f"^the model is {model}\\b.*{why}") as error:
        clear_node(other)
    assert str(error.value).count(". ") == 0
    assert other.wrappers == {} and other.object_patches == {}
