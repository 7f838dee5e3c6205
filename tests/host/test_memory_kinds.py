"""The estimate of a call's memory on other families than FLUX.1: counted where blocks are known, else the host's."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tests.host.support_comfy.kinds import SIGMA, enlarged, noise
from tests.host.support_comfy.live_bytes import LiveBytes
from tests.host.support_comfy.memory_counts import HELD
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import predict
from tests.host.support_comfy.test_only_models import KINDS, OTHERS, TinyKind

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.

ATTENDING = ("flux.math", "qwen_image.model", "lumina.model", "modules.diffusionmodules.mmdit")
"""Modules of comfy.ldm that call the host's attention."""

GRID = (40, 48)


@pytest.fixture
def plan_of(host, pack, host_part):
    """``plan_of(kind, model, prompt)`` is the estimate."""

    def plan(kind: TinyKind, model: Any, positive: list) -> Any:
        conds = host_part("model.sequence").sampler_conds(positive)
        picture_model = host_part("model.picture_model").picture_model(model, kind.vae())
        return host_part("model.memory_plan").memory_plan(model, conds, picture_model)

    return plan


@pytest.fixture
def attention_as_planned(host, monkeypatch):
    """Attention that holds what is planned for it and no more; a matrix of scores on a CPU would cover all else."""

    def attend(
        q: torch.Tensor, k: Any, v: Any, heads: int, *_: Any, skip_reshape: bool = False, **__: Any
    ) -> torch.Tensor:
        shape = (q.shape[0], q.shape[2], q.shape[1] * q.shape[3]) if skip_reshape else q.shape
        _held = [q.new_empty(shape) for _ in range(HELD)]
        return q.new_zeros(shape)

    for name in ATTENDING:
        module = importlib.import_module(f"comfy.ldm.{name}")
        for function in ("optimized_attention", "optimized_attention_masked"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, attend)


LARGE = {"x_block_self_attn_layers": []}


@pytest.mark.parametrize(
    ("name", "changed", "references"),
    [
        ("FLUX.2", {}, 0),
        ("FLUX.2", {}, 1),
        ("Qwen-Image", {}, 0),
        ("Qwen-Image", {}, 1),
        ("Z-Image", {}, 0),
        ("SD3.5", {}, 0),
        ("SD3.5", LARGE, 0),
    ],
    ids=[
        "FLUX.2",
        "FLUX.2 with a reference",
        "Qwen",
        "Qwen with a reference",
        "Z-Image",
        "SD3.5 Medium",
        "SD3.5 Large",
    ],
)
def test_known_blocks_take_what_is_planned(attention_as_planned, plan_of, name, changed, references):
    kind = KINDS[name]
    model, x = kind.build(**changed), noise(kind, GRID)
    positive = kind.prompt(reference_latents=[noise(kind, (20, 24))] * references) if references else kind.prompt()
    plan = plan_of(kind, model, positive)
    assert not plan.source
    predict(model, noise(kind), SIGMA, positive)
    with LiveBytes() as count:
        predict(model, x, SIGMA, positive)
    assert count.peak == pytest.approx(plan.peak_bytes(GRID[0] * GRID[1]), rel=0.12)
    without = plan_of(kind, model, kind.prompt()).peak_bytes(GRID[0] * GRID[1])
    assert (plan.peak_bytes(GRID[0] * GRID[1]) > 1.1 * without) == bool(references)


@pytest.mark.parametrize("name", ["SDXL", "SD1.5", "HunyuanImage 2.1"])
def test_unknown_blocks_are_the_hosts_estimate(host, plan_of, name):
    kind = {**KINDS, **OTHERS}[name]
    model, positive = kind.build(), kind.prompt()
    plan = plan_of(kind, model, positive)
    units = kind.unit // kind.cell
    shape = [2, kind.channels, 8 * units, 12 * units]
    tokens = 8 * 12 * (kind.unit // kind.cell) ** 2 // (4 if name == "SDXL" else 1)
    assert plan.source == "unknown model: the host's estimate"
    assert plan.peak_bytes(tokens, 2) == int(model.model.memory_required(shape))
    _, _, info = enlarged(host, kind, model, picture(64, 64), steps=1, upscale_by=1.0)
    assert "GiB beside the weights (unknown model: the host's estimate)" in info


def test_without_any_estimate_a_picture_is_whole_up_to_a_safe_size(host, plan_of):
    kind = KINDS["SDXL"]
    model = kind.build()
    model.model.memory_usage_factor = 0
    plan = plan_of(kind, model, kind.prompt())
    assert "no estimate" in plan.source
    for side, fits in ((2048, True), (2112, False)):
        assert (plan.peak_bytes((side // 16) ** 2) <= plan.budget(24 * 2**30)) == fits
    _, _, info = enlarged(host, kind, model, picture(64, 64), steps=1, upscale_by=1.0)
    assert "memory not known (unknown model" in info
