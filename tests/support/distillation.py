"""A tiny FLUX of diffusers to distil, and a whole distillation in this process."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from clear_core.distill.config import TrainConfig
from clear_core.distill.samples import SampleFolder
from clear_core.distill.train import distil, set_up

pytest.importorskip("diffusers")

from diffusers import FluxTransformer2DModel

accelerate = pytest.importorskip("accelerate")

CONFIG = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def teacher(seed: int = 0) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FluxTransformer2DModel(**CONFIG).eval()


def run(
    model: FluxTransformer2DModel, data: Path, plan: TrainConfig, out: Path, **options: object
) -> dict[str, torch.Tensor]:
    """A whole distillation in this process; the student's state dict."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulation)
    distillation = set_up(copy.deepcopy(model), SampleFolder(data), plan, accelerator)
    distil(distillation, out, **options)
    return distillation.inner.state_dict()
