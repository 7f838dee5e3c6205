"""CLEAR in a diffusers FLUX that is fused, trained, compiled or given another embedder."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from packaging.version import Version

from clear_core import ClearSpec

pytest.importorskip("diffusers")

import diffusers

from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import call_inputs, relative, run

PAST_THE_DIAGONAL = 1000


def test_fused_projections(flux: Any) -> None:
    inputs = call_inputs((6, 7))
    with apply_clear(flux, ClearSpec(3)):
        expected = run(flux, inputs)
    flux.fuse_qkv_projections()
    with apply_clear(flux, ClearSpec(3)):
        assert relative(run(flux, inputs), expected) < 1e-6


def test_gradients_reach_the_spatial_weights_and_survive_checkpointing(flux: Any) -> None:
    apply_clear(flux, ClearSpec(2, 2), ntk_factor=10.0)
    inputs = call_inputs((5, 6))
    if Version(diffusers.__version__) < Version("0.35"):
        flux.enable_gradient_checkpointing()
        with pytest.raises(ValueError, match=r"diffusers 0\.35 or later"):
            flux(**inputs)
        return
    gradients = []
    for checkpointing in (False, True):
        flux.train()
        (flux.enable_gradient_checkpointing if checkpointing else flux.disable_gradient_checkpointing)()
        flux.zero_grad()
        flux(**inputs, return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad.clone() for n, p in flux.named_parameters() if n.endswith("spatial_weight")])
    assert len(gradients[0]) == 3
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.norm() > 0
        assert relative(recomputed, plain) < 1e-5


@pytest.mark.slow
def test_compiled_model_follows_the_size(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3), ntk_factor=10.0)
    calls = [call_inputs(grid) for grid in ((6, 7), (7, 6), (9, 5), (6, 7))]
    expected = [run(flux, inputs) for inputs in calls]
    compiled = torch.compile(flux, backend="eager")
    for inputs, wanted in zip(calls, expected, strict=True):
        assert relative(run(compiled, inputs), wanted) < 1e-6


def test_foreign_embedder_is_kept(flux: Any, caplog: pytest.LogCaptureFixture) -> None:
    class DyPE(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> Any:
            return self.inner(ids * 0.5)

    flux.pos_embed = DyPE(flux.pos_embed)
    inputs = call_inputs((6, 7))
    stock = run(flux, inputs)
    with caplog.at_level(logging.WARNING, logger="clear_core"):
        apply_clear(flux, ClearSpec(PAST_THE_DIAGONAL), ntk_factor=10.0)
    assert relative(run(flux, inputs), stock) < 1e-6
    assert [record.getMessage() for record in caplog.records if "DyPE" in record.getMessage()]
