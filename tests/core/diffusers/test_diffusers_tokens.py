"""Ids and latents as the tokens of a diffusers FLUX, and back; the denoiser made of them."""

from __future__ import annotations

import pytest
import torch

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser, pack_latent, unpack_latent
from clear_core.integrations.frame import grid_ids, read_frame


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (5, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_read_frame_inverts_grid_ids(grid: tuple[int, int], dtype: torch.dtype) -> None:
    ids = torch.cat([grid_ids(grid, origin=(3, 20)), grid_ids((2, 3), index=1), grid_ids((1, 4), index=2)])
    frame = read_frame(ids.to(dtype))
    assert (frame.grid, frame.reference) == (grid, 10)
    assert torch.equal(frame.exact_ids, ids)


def test_packing_is_the_pipelines_own() -> None:
    latent = torch.randn(2, 4, 6, 10)
    # FluxPipeline needs transformers to be imported; this is its layout, written with other means.
    tokens = torch.nn.functional.unfold(latent, 2, stride=2).transpose(1, 2)
    assert torch.equal(pack_latent(latent), tokens)
    assert torch.equal(unpack_latent(pack_latent(latent), (3, 5)), latent)
    with pytest.raises(ValueError, match="even sides"):
        pack_latent(torch.zeros(1, 4, 5, 6))


def test_denoiser_takes_models_without_guidance() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    latent = torch.randn(2, 4, 6, 8)
    with torch.no_grad(), apply_clear(model, ClearSpec(2)):
        out = FluxDenoiser(model, torch.randn(1, 3, 8), torch.randn(1, 8))(latent, 0.5)
    assert out.shape == latent.shape and out.isfinite().all()
