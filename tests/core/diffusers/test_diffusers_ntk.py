"""The ways of stretching the rotary base in a diffusers FLUX, against the stock model under the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core import ClearSpec
from clear_core.families import FLUX1, FLUX2, QWEN_IMAGE, Family
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, relative, run
from tests.support.diffusers_relatives import RELATIVES


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


@pytest.mark.parametrize("name", ["Chroma", "FLUX.2", "Qwen-Image"])
def test_relatives_under_a_factor_are_the_stock_model_under_the_larger_base(name: str) -> None:
    kind = RELATIVES[name]
    model = kind.build()
    inputs = kind.call(GRID, references=((5, 3),) if kind.references else ())
    stock = run(model, inputs)
    with apply_clear(model, ClearSpec(100), ntk_factor=10.0):
        found = run(model, inputs)
    with apply_clear(model, ClearSpec(100)):
        assert relative(run(model, inputs), stock) < 1e-5
    embedder = model.pos_embed
    own = {"scale_rope": embedder.scale_rope} if name == "Qwen-Image" else {}
    model.pos_embed = type(embedder)(theta=10 * embedder.theta, axes_dim=embedder.axes_dim, **own)
    assert relative(found, run(model, inputs)) < 1e-5
    assert relative(found, stock) > 1e-4


@pytest.mark.parametrize("family", [FLUX2, QWEN_IMAGE], ids=lambda family: family.name)
def test_without_a_recipe_the_base_stays_at_any_size(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    monkeypatch.setitem(vars(family), "hires_tokens", 50)
    model, inputs = RELATIVES[family.name].build(), RELATIVES[family.name].call(GRID)
    stock = run(model, inputs)
    with apply_clear(model, ClearSpec(100), proportional_attention="off"):
        assert relative(run(model, inputs), stock) < 1e-5
    with apply_clear(model, ClearSpec(100)):
        assert relative(run(model, inputs), stock) > 1e-4


def test_qwen_image_fades_from_the_frame_s_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """At noise level t the base of rows and columns is b ** (2 t^2) times as large, and text is turned by it too."""
    monkeypatch.setitem(vars(QWEN_IMAGE), "native_tokens", 64)
    model, sigma = RELATIVES["Qwen-Image"].build(), 0.5
    inputs = RELATIVES["Qwen-Image"].call(GRID) | {"timestep": torch.full((2,), sigma)}
    with apply_clear(model, ClearSpec(100), ntk="fading"):
        found = run(model, inputs)
    embedder = model.pos_embed
    model.pos_embed = mixed = type(embedder)(embedder.theta, embedder.axes_dim, embedder.scale_rope)
    bases = [1.0, *((side / 8) ** (d / (d - 2)) for side, d in zip(GRID, embedder.axes_dim[1:], strict=True))]
    axes = [type(embedder)(10000 * base ** (2 * sigma**2), embedder.axes_dim, embedder.scale_rope) for base in bases]
    widths = [d // 2 for d in embedder.axes_dim]
    for table in ("pos_freqs", "neg_freqs"):
        parts = [getattr(each, table).split(widths, dim=1)[axis] for axis, each in enumerate(axes)]
        setattr(mixed, table, torch.cat(parts, dim=1))
    assert relative(found, run(model, inputs)) < 1e-5


def test_diffusers_refuses_a_bad_value(flux: Any) -> None:
    with pytest.raises(ValueError, match="ntk is 'linear'; expected one of constant, clipped, fading"):
        apply_clear(flux, ClearSpec(3), ntk="linear")
