"""Distilled weights on the formats that people load: int8, nvfp4, mxfp8 and mixed files. fp8 and GGUF: see
``test_quantised_bases.py``; all formats and all kinds of weights: ``benchmarks.formats``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.host.support_comfy.format_rows import FILES, Laboratory, mean_error, unload
from tests.host.support_comfy.formats import FORMATS, Format, missing, write_model
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import run_node

FAST = ("nvfp4", "int8, convrot", "mixed: fp8 attention, nvfp4 MLP")


@pytest.fixture(scope="module", autouse=True)
def inference_mode() -> Iterator[None]:
    """As the host's executor runs every node; its quantised tensors cannot be patched half in and half out of it."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def laboratory(host, pack, inference_mode) -> Laboratory:
    return Laboratory(host, pack, side=128, scenes=1)


def in_host(host, form: Format) -> Format:
    """The format; the test is skipped if this host has not got it."""
    if why := missing(host, form):
        pytest.skip(why)
    return form


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=() if form.name in FAST else pytest.mark.slow) for form in FORMATS],
    ids=lambda form: form.name,
)
def test_weights_of_every_kind_on_a_format(host, laboratory, form):
    """Patching costs at most what stochastic rounding may: twice the variance of rounding to nearest, all else same."""
    row = laboratory.row(in_host(host, form))
    own = max(row.own, row.merged)
    without = mean_error(
        laboratory.flows(laboratory.windows(laboratory.plain())), laboratory.expected_windowed["whole"]
    )
    assert without > 1.5 * own, "the weights must matter here"
    for kind, error in row.patched.items():
        assert error < 1.8 * own + 1e-6, kind
        assert row.partial[kind] < 1.2 * own + 1e-6, f"{kind}, loaded in parts: nothing is quantised anew"
    assert row.lora_order, "a LoRA before and after the node"
    assert row.lora < 3 * own + 1e-6
    assert row.patched_size == row.size, "patched weights stay in the model's format"
    if form.kind == "gguf":
        return  # Its library keeps the file's tensors and patches them at each use.
    assert row.saved
    if form.name == "bf16":
        assert own == 0 and all(row.partial_is_whole.values())


@pytest.mark.parametrize("name", ["int8, convrot"])
def test_a_delta_that_a_saved_quantised_model_carries_is_noticed(host, laboratory, caplog, name):
    (form,) = (form for form in FORMATS if form.name == name)
    load = write_model(host, in_host(host, form), laboratory.tensors, "format_carrying")
    first = laboratory.clear(load(), "delta")
    assert "carries about" not in caplog.text
    laboratory.flows(first)
    again = laboratory.saved(first)
    unload()
    laboratory.clear(again, "delta")
    assert "carries about 100 % of it already" in caplog.text


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kind", ["whole", "delta"])
def test_strength_0_is_the_model_without_weights(host, laboratory, name, kind):
    """A layer of nvfp4 that is patched by nothing, and stored again, would lose as much as one that is patched."""
    (form,) = (form for form in FORMATS if form.name == name)
    load = write_model(host, in_host(host, form), laboratory.tensors, "format_strength_0")
    inputs = {"weights_name": FILES[kind], "strength": 0.0}
    (model,) = run_node(host.stock("CLEARAttention"), model=laboratory.with_lora(load()), **inputs)
    found = laboratory.flows(model)
    unload()
    expected = laboratory.flows(laboratory.windows(laboratory.with_lora(load())))
    unload()
    assert all(map(torch.equal, found, expected))
    (model,) = run_node(host.stock("CLEARAttention"), model=load(), **inputs)
    assert model.patches == {}


@pytest.mark.parametrize("name", FAST)
def test_inspect_and_upscale_read_a_quantised_model_as_any_other(host, laboratory, upscale, name):
    """What they say and make, beside the model in bf16: sizes and memory are asked before it is loaded."""
    (form,) = (form for form in FORMATS if form.name == name)
    load = write_model(host, in_host(host, form), laboratory.tensors, "format_inspected")

    def seen(model: Any) -> tuple[str, str, torch.Tensor]:
        windowed = laboratory.clear(model, "delta")
        _, report = run_node(host.stock("CLEARInspect"), model=windowed, upscale_by=1.0)
        prompt = laboratory.cases[0][1]
        image = picture(64, 96)
        out, _, info = upscale(
            image, windowed, positive=prompt, steps=2, tile_width=96, tile_height=96, tile_overlap=32
        )
        unload()
        return report, info, out

    (report, info, out), (plain_report, plain_info, plain) = seen(load()), seen(laboratory.plain())
    assert "FLUX.1, width 256, 1 double and 3 single blocks" in report
    sizes = [line for line in plain_report.splitlines() if line.startswith(("size:", "radius:", "weights:", "stages:"))]
    assert sizes and set(sizes) <= set(report.splitlines())
    assert info.count("tiles of") == plain_info.count("tiles of") > 0
    assert out.shape == plain.shape and out.isfinite().all()
    assert 0 < (out - plain).abs().mean() < 0.05
