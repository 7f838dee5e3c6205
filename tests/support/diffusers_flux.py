"""The tiny diffusers FLUX of the golden vectors, calls of it and the golden cases as such calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from diffusers import FluxTransformer2DModel

from clear_core.integrations.frame import grid_ids
from tests.support.golden_files import BASE, GOLDEN


def metadata(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[key])


def tiny_flux() -> Any:
    """The base's weights."""
    model = FluxTransformer2DModel(**metadata(BASE, "config")).eval()
    model.load_state_dict(load_file(BASE))
    return model


def call_inputs(grid: tuple[int, int], text: int = 5, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, grid[0] * grid[1], 16, generator=rng),
        "encoder_hidden_states": torch.randn(batch, text, 32, generator=rng),
        "pooled_projections": torch.randn(batch, 16, generator=rng),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": grid_ids(grid),
        "txt_ids": torch.zeros(text, 3),
    }


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


def golden_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    path = GOLDEN / f"case_{name}.safetensors"
    case, tensors = metadata(path, "case"), load_file(path)
    batch = tensors["hidden_states"].shape[0]
    inputs = {
        "hidden_states": tensors["hidden_states"],
        "encoder_hidden_states": tensors["encoder_hidden_states"],
        "pooled_projections": tensors["pooled"],
        "timestep": torch.full((batch,), case["sigma"]),
        "guidance": torch.full((batch,), case["guidance"]),
        "img_ids": grid_ids((case["height"], case["width"])),
        "txt_ids": torch.zeros(case["text_len"], 3),
    }
    return case, inputs, tensors["output"]
