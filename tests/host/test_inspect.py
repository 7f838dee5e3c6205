"""CLEARInspect in a real ComfyUI: what it reads of a model, and that it runs alone."""

from __future__ import annotations

import hashlib
import math
from importlib import import_module
from typing import Any

import pytest
import torch
from PIL import Image

from tests.host.support_comfy.sampling import Graph, conditioning

WEIGHTS = "tiny/clear_local_4_down_2.safetensors"


@pytest.fixture
def inspect(host, run_node):
    """``inspect(model, **inputs)`` is (page, text) of the node."""

    def run(model: Any, **inputs: Any) -> tuple[torch.Tensor, str]:
        return run_node(host.stock("CLEARInspect"), model=model, **inputs)

    return run


def quoted(text: str) -> dict[str, str]:
    """The lines for bug reports by name."""
    lines = text.split("--- for bug reports ---\n")[1].splitlines()
    assert all(": " in line for line in lines), lines
    names = [line.split(": ", 1)[0] for line in lines]
    assert len(names) == len(set(names))
    return dict(line.split(": ", 1) for line in lines)


def attend_as_before(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def with_override(model: Any) -> Any:
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attend_as_before
    return model


def lora_of(model: Any, key: str) -> dict[str, Any]:
    weight = model.model.get_parameter(key)
    return {key: ("diff", (torch.zeros_like(weight),))}


KEY = "diffusion_model.double_blocks.0.img_attn.qkv.weight"


def test_what_is_quoted_of_a_patched_model(inspect, tiny_flux, clear_node, host):
    model = clear_node(
        tiny_flux(),
        weights_name=WEIGHTS,
        strength=0.5,
        start_percent=0.1,
        end_percent=0.9,
        dense_blocks="d1, s0",
        min_tokens=16,
        controlnet="off",
    )
    page, text = inspect(model, image=torch.rand(1, 96, 160, 3), upscale_by=4.0)
    lines = quoted(text)
    digest = hashlib.sha256((host.base / "models" / "clear" / WEIGHTS).read_bytes()).hexdigest()
    assert lines["weights"] == f"clear_local_4_down_2.safetensors, strength 0.5, sha256 {digest[:10]}"
    assert (lines["radius"], lines["down factor"], lines["dense blocks"]) == ("4", "2", "d1, s0")
    assert (lines["start percent"], lines["end percent"], lines["min tokens"]) == ("0.1", "0.9", "16")
    assert lines["controlnet"] == "off"
    assert lines["size"].startswith("640 x 384 px, 960 image tokens")
    assert lines["stages"] == "160 x 96 to 320 x 192 to 640 x 384 px"
    assert lines["ntk factor"].startswith("1 ")
    assert lines["attention scale"].startswith(f"{128**-0.5:.6f} ")
    assert lines["backend"].startswith("gather (")
    assert lines["ComfyUI"] == host.version and lines["torch"] == torch.__version__
    assert lines["model"].startswith("FLUX.1, width 256, 2 double and 2 single blocks, computes in float32")
    assert lines["other patches"] == "none"
    assert "circle 128 px wide" in text
    assert str(host.base) not in text and WEIGHTS not in text  # no folders of this machine
    assert page.shape[0] == 1 and page.shape[2:] == (1640, 3) and page.min() >= 0 and page.max() <= 1


def test_settings_come_into_force_at_high_resolution(inspect, tiny_flux, clear_node):
    model = clear_node(tiny_flux(), radius=8)
    lines = quoted(inspect(model)[1])
    assert lines["size"].startswith("4096 x 4096 px, 65536 image tokens")
    scale = math.sqrt(math.log(256 * 256 + 512, 4608) / 128)
    assert lines["ntk factor"].startswith("10 ")
    assert lines["attention scale"].startswith(f"{scale:.6f} ") and "on, automatic" in lines["attention scale"]


@pytest.mark.parametrize(
    ("inputs", "size", "origin"),
    [
        pytest.param({"image": torch.rand(2, 250, 333, 3)}, "336 x 256 px", "picture", id="picture"),
        pytest.param({"latent": {"samples": torch.zeros(1, 16, 20, 30)}}, "240 x 160 px", "latent", id="latent"),
        pytest.param(
            {"image": torch.rand(1, 64, 64, 3), "latent": {"samples": torch.zeros(1, 16, 20, 30)}},
            "64 x 64 px",
            "picture",
            id="both",
        ),
        pytest.param({}, "4096 x 4096 px", "nothing connected", id="neither"),
    ],
)
def test_where_the_size_comes_from(inspect, tiny_flux, clear_node, inputs, size, origin):
    lines = quoted(inspect(clear_node(tiny_flux(), radius=3), **inputs)[1])
    assert lines["size"].startswith(f"{size}, ")
    assert lines["size"].endswith(f"batch {len(inputs['image']) if 'image' in inputs else 1}")
    assert lines["size from"] == origin


def test_the_picture_shows_inside_the_circle(inspect, tiny_flux, clear_node):
    """A red picture stays red in its middle, and pales where nothing is seen."""
    red = torch.zeros(1, 1024, 1024, 3)
    red[..., 0] = 1
    page, _ = inspect(clear_node(tiny_flux(), radius=8), image=red)
    is_red = (page[0] - torch.tensor([1.0, 0, 0])).abs().amax(-1) < 0.02
    across = int(is_red.any(0).sum()) * 1024 / 750
    assert 256 - 12 <= across <= 256  # the circle's line covers its border


def test_a_model_without_clear_is_told_what_it_would_save(inspect, tiny_flux):
    _, text = inspect(tiny_flux())
    lines = quoted(text)
    assert lines["clear"] == "not connected"
    assert lines["work of a step"].startswith("100 %") or "100 % of" in lines["work of a step"]
    assert "CLEAR Attention" in text.split("---")[0]


def test_another_model_gets_one_sentence(inspect, tiny_flux):
    model = tiny_flux()
    model.model.model_config.unet_config = {**model.model.model_config.unet_config, "image_model": "unheard_of"}
    page, text = inspect(model)
    told = text.split("\n\n")[0]
    assert "unheard_of" in told and "\n" not in told
    assert quoted(text)["model"] == "no FLUX.1"
    assert page.shape[2] == 1640


def test_fewer_tokens_than_min_tokens_are_called_so(inspect, tiny_flux, clear_node):
    _, text = inspect(clear_node(tiny_flux(), radius=4, min_tokens=9999), image=torch.rand(1, 512, 512, 3))
    assert quoted(text)["windows at this size"] == "no (fewer image tokens than min_tokens)"
    assert "min_tokens" in text.split("---")[0] and "circle" not in text.split("\n")[0]


@pytest.mark.parametrize("after", [False, True], ids=["before CLEAR", "after CLEAR"])
def test_patches_of_other_nodes(inspect, tiny_flux, clear_node, run_node, host, after):
    def others(model: Any) -> Any:
        model = with_override(model)
        for _ in range(2):
            model.add_patches(lora_of(model, KEY), 0.5)
        model.set_model_attn1_output_patch(lambda out, extra: out)
        model.set_model_sampler_cfg_function(lambda args: args["cond"])
        model.add_wrapper_with_key("diffusion_model", "easycache", lambda executor, *a, **k: executor(*a, **k))
        return run_node(host.stock("ModelSamplingAuraFlow"), model=model, shift=2.5)[0]

    def clear(model: Any) -> Any:
        return clear_node(model, weights_name=WEIGHTS)

    model = others(clear(tiny_flux())) if after else clear(others(tiny_flux()))
    told = quoted(inspect(model)[1])["other patches"]
    for words in (
        "2 LoRAs",
        "on 1 weights",
        "attend_as_before",
        "attn1_output_patch",
        "guidance is replaced",
        "easycache",
        "shift 2.5",
    ):
        assert words in told, told
    assert "clear" not in told.lower()


def test_a_pack_is_named_without_its_folder(pack):
    """The host names a pack's modules by their path."""
    name_of = import_module(f"{pack.__name__}.nodes.host.inspect.other_patches").name_of
    for module in ("/home/me/ComfyUI/custom_nodes/Some-Pack.nodes.patch", r"C:\me\custom_nodes\Some-Pack.nodes"):
        function = type(attend_as_before)(attend_as_before.__code__, {"__name__": module}, "attend")
        function.__qualname__ = "Patch.apply.<locals>.attend"
        assert name_of(function) == "attend of Some-Pack"
    assert name_of(torch.nn.Linear(1, 1)) == "Linear"


GRAPH: Graph = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    "2": {"class_type": "CLEARAttention", "inputs": {"model": ["1", 0], "weights_name": WEIGHTS}},
    "3": {"class_type": "EmptyImage", "inputs": {"width": 320, "height": 240, "batch_size": 1, "color": 0x336699}},
    "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 336, "height": 208, "batch_size": 1}},
}


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        pytest.param({"model": ["2", 0], "image": ["3", 0], "upscale_by": 2.0}, "640 x 480", id="picture"),
        pytest.param({"model": ["2", 0], "latent": ["4", 0]}, "336 x 208", id="latent"),
        pytest.param({"model": ["2", 0]}, "4096 x 4096", id="neither"),
        pytest.param({"model": ["1", 0], "image": ["3", 0]}, "320 x 240", id="without CLEAR"),
    ],
)
def test_it_runs_alone_on_a_server(running_server, inputs, size):
    """As an output node it needs nothing behind it, and its result reaches the front end as picture and text."""
    entry = running_server.run({**GRAPH, "9": {"class_type": "CLEARInspect", "inputs": inputs}})
    assert entry["status"]["status_str"] == "success"
    out = entry["outputs"]["9"]
    (text,), (image,) = out["text"], out["images"]
    assert quoted(text)["size"].startswith(size)
    assert image["type"] == "temp"
    with Image.open(running_server.base / "temp" / image["subfolder"] / image["filename"]) as page:
        assert page.width == 1640


def test_info_of_an_enlargement_holds_what_decides_the_picture(tiny_flux, clear_node, pack, host):
    """CLEARUpscale's ``info``: what the settings come to at each stage, the weights' fingerprint, versions."""
    plan, stage = (import_module(f"{pack.__name__}.nodes.host.upscale.{name}") for name in ("info", "stage"))
    plan_stages = import_module(f"{pack.__name__}.clear_core.sdedit").plan_stages
    model = clear_node(tiny_flux(), weights_name=WEIGHTS, strength=0.5, min_tokens=5000)
    inputs = stage.StageInputs(model, conditioning(torch.zeros(1, 77, 64), torch.zeros(1, 32)), object())
    info = plan.info_text(plan_stages(1024, 1024, upscale_by=4.0), inputs, stage.StageSettings(), 1).splitlines()
    digest = hashlib.sha256((host.base / "models" / "clear" / WEIGHTS).read_bytes()).hexdigest()
    assert f"weights: clear_local_4_down_2.safetensors, strength 0.5, sha256 {digest[:10]}" in info
    for number, side in ((1, 128), (2, 256)):
        scale = math.sqrt(math.log(10 * (side * side + 77), 4608) / 128)
        assert f"stage {number} attention: windows, ntk 10, scale {scale:.6f} (proportional), backend gather" in info
    assert f"ComfyUI: {host.version}" in info and f"torch: {torch.__version__}" in info
    assert any(line.startswith("clear-flux: ") for line in info)
    small = plan.info_text(plan_stages(512, 512, upscale_by=2.0), inputs, stage.StageSettings(), 1)
    assert "stage 1 attention: no windows (fewer image tokens than min_tokens), ntk 1, " in small
