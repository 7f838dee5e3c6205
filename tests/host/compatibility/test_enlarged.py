"""CLEAR Upscale by model.

Whole frames against the host's own nodes: encode, KSampler, decode.
"""

from __future__ import annotations

import pytest
import torch

from tests.host.support_comfy.kinds import enlarged
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.test_only_models import KINDS, OTHERS, TinyKind
from tests.host.support_comfy.upscaling import lanczos

ALL = {**KINDS, **OTHERS}
RULE = "one stage in one piece is what VAE Encode, KSampler and VAE Decode make of the enlarged picture, at cfg 1 and 3"


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.row(f"{name}, enlarged", RULE)) for name in ALL])
def kind(request, host, pack) -> TinyKind:
    found = ALL[request.param]
    if not found.is_known:
        pytest.skip(f"this ComfyUI does not know {request.param}")
    return found


@pytest.mark.parametrize("cfg", [1.0, 3.0], ids=["cfg 1", "cfg 3"])
def test_a_whole_frame_is_the_stock_graphs(cell, host, kind, cfg):
    """With the model's own noise levels."""
    sides = {"image": picture(2 * kind.unit, 3 * kind.unit), "large": (4 * kind.unit, 6 * kind.unit)}
    model, vae = kind.build(), kind.vae()
    prompts = {"positive": kind.prompt(), "negative": kind.prompt(5)}
    with torch.inference_mode():
        (latent,) = run_node(host.stock("VAEEncode"), pixels=lanczos(host, sides["image"], sides["large"]), vae=vae)
        sampled = {"seed": 3, "steps": 2, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.5}
        (latent,) = run_node(host.stock("KSampler"), model=model, latent_image=latent, **prompts, **sampled)
        (expected,) = run_node(host.stock("VAEDecode"), samples=latent, vae=vae)
    out, samples, info = enlarged(host, kind, model, sides["image"], cfg=cfg, **prompts)
    assert samples.ndim == (5 if kind.has_frames else 4)
    assert "whole frame" in info and "shift: the model's own" in info
    is_unet = kind.supported in ("SDXL", "SD15")
    words = "no window: costs what dense" if is_unet else "dense, no windows: there is no CLEARAttention"
    assert f"attention: {words}" in info
    cell.identical(samples, latent["samples"])
    cell.identical(out, expected)
