"""CLEAR in a diffusers FLUX against the stock model with the window as an attention mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.frame import grid_ids
from tests.support.diffusers_flux import call_inputs, relative, run
from tests.support.diffusers_relatives import written_out_mask


def with_references(inputs: dict[str, torch.Tensor], grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    tokens = torch.randn(1, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(5))
    return inputs | {
        "hidden_states": torch.cat([inputs["hidden_states"], tokens], dim=1),
        "img_ids": torch.cat([inputs["img_ids"], grid_ids(grid, index=1)]),
    }


@pytest.mark.parametrize("reference", [None, (3, 4)], ids=["plain", "kontext"])
@pytest.mark.parametrize(
    ("grid", "text", "radius"),
    [
        pytest.param((6, 5), 5, 2, id="6x5"),
        pytest.param((1, 9), 3, 4, id="one-row"),
        pytest.param((7, 1), 1, 1, id="one-column"),
    ],
)
def test_window_equals_a_mask_given_to_the_stock_model(
    flux: Any, grid: tuple[int, int], text: int, radius: int, reference: tuple[int, int] | None
) -> None:
    inputs = call_inputs(grid, text)
    if reference:
        inputs = with_references(inputs, reference)
    mask = written_out_mask(grid, text, 12 if reference else 0, radius)
    masked = run(flux, inputs | {"joint_attention_kwargs": {"attention_mask": mask}})
    with apply_clear(flux, ClearSpec(radius)):
        assert relative(run(flux, inputs), masked) < 1e-6
