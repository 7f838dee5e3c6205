"""Tiny models of diffusers to distil, and a whole distillation in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core.distill.config import TrainConfig
from clear_core.distill.samples import SampleFolder, write_sample
from clear_core.distill.set_up import set_up
from clear_core.distill.train import Distillation, distil

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


def start(model: Any, data: Path, plan: TrainConfig, **options: Any) -> Distillation:
    """A distillation of a copy of a model, ready to run in this process."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulation)
    return set_up(copy.deepcopy(model), SampleFolder(data), plan, accelerator, **options)


def run(model: Any, data: Path, plan: TrainConfig, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """A whole distillation in this process; the trained tensors by canonical name."""
    set_up_options = {name: options.pop(name) for name in ("offload", "checkpointing") if name in options}
    distillation = start(model, data, plan, **set_up_options)
    distil(distillation, out, **options)
    return {name: parameter.detach().clone() for name, parameter in distillation.pair.trained().items()}


def samples_for(
    folder: Path, config: dict[str, Any], count: int = 4, grid: tuple[int, int] = (4, 6), seed: int = 0
) -> Path:
    """Random samples with the parts and widths that :meth:`Teaching.needs` names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    for index in range(count):
        parts = {
            name: torch.randn(*((5, width) if name.endswith("embeds") else (width,)), generator=rng)
            for name, width in config.items()
            if name != "latents"
        }
        write_sample(folder, index, torch.randn(config["latents"], *grid, generator=rng), **parts)
    return folder
