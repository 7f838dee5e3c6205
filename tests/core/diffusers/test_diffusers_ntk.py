"""The ways of stretching the rotary base in a diffusers FLUX, against the stock model under the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core import ClearSpec
from clear_core.families import FLUX1
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, relative, run


class Written(torch.nn.Module):
    """A diffusers position embedder with frequencies that are given to it."""

    def __init__(self, frequencies: list[list[float]]) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.cat(
            [ids[:, axis, None].double() * torch.tensor(each).double() for axis, each in enumerate(self.frequencies)], 1
        )
        cos, sin = (part.repeat_interleave(2, dim=1).float() for part in (angles.cos(), angles.sin()))
        return cos, sin


GRID = (9, 14)


@pytest.mark.parametrize("sigma", [0.25, 1.0])
@pytest.mark.parametrize("kind", ["clipped", "fading"])
def test_in_diffusers(flux: Any, monkeypatch: pytest.MonkeyPatch, kind: str, sigma: float) -> None:
    """Against the stock model, whose window is the picture, with an embedder of the formula's frequencies."""
    monkeypatch.setitem(vars(FLUX1), "native_tokens", 64)
    inputs = call_inputs(GRID, batch=2) | {"timestep": torch.full((2,), sigma)}
    axes, factor = flux.pos_embed.axes_dim, 10.0 if kind == "clipped" else 0.0
    with apply_clear(flux, ClearSpec(100), ntk_factor=factor, proportional_attention="off", ntk=kind):
        found = run(flux, inputs)
    with apply_clear(flux, ClearSpec(100), ntk_factor=factor or 1.0, proportional_attention="off"):
        other = run(flux, inputs)
    bases = [1.0, *((side / 8) ** (d / (d - 2)) for side, d in zip(GRID, axes[1:], strict=True))]
    exponents = [[2 * i / d for i in range(d // 2)] for d in axes]
    if kind == "clipped":
        slowest = math.sqrt(9 * 14 / 64)
        omegas = [[max(1e5**-s, 1e4**-s / slowest) for s in each] for each in exponents]
    else:
        omegas = [
            [(1e4 * base ** (2 * sigma**2)) ** -s for s in each] for base, each in zip(bases, exponents, strict=True)
        ]
    monkeypatch.setattr(flux, "pos_embed", Written(omegas))
    assert relative(found, run(flux, inputs)) < 2e-6
    assert relative(other, found) > 1e-4


@pytest.mark.parametrize("timestep", [torch.tensor([0.7, 0.6]), None], ids=["two levels", "none"])
def test_diffusers_refuses_to_fade_without_one_noise_level(
    flux: Any, monkeypatch: pytest.MonkeyPatch, timestep: Tensor | None
) -> None:
    monkeypatch.setitem(vars(FLUX1), "native_tokens", 64)
    apply_clear(flux, ClearSpec(3), ntk="fading")
    with pytest.raises(ValueError, match=r"the timesteps \[.*expected one for the whole batch.*use ntk 'clipped'"):
        run(flux, call_inputs(GRID, batch=2) | {"timestep": timestep})


def test_diffusers_refuses_a_bad_value(flux: Any) -> None:
    with pytest.raises(ValueError, match="ntk is 'linear'; expected one of constant, clipped, fading"):
        apply_clear(flux, ClearSpec(3), ntk="linear")
