"""SD3 past the end of its table of positions: spread over it with CLEAR, refused by the host without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.kinds import SIGMA, noise
from tests.host.support_comfy.sampling import predict, run_node
from tests.host.support_comfy.test_only_models import KINDS

KIND, SIDE = KINDS["SD3.5"], 5


def build() -> Any:
    """A model whose table has 5 x 5 places."""
    return KIND.build(pos_embed_max_size=SIDE, num_patches=SIDE**2)


def with_windows(host: Any, model: Any) -> Any:
    with torch.inference_mode():
        (clone,) = run_node(host.stock("CLEARAttention"), model=model, radius=64)
    return clone


@pytest.fixture
def positions(host, pack) -> Callable[[Any, tuple[int, int]], torch.Tensor]:
    """``positions(model, grid)``: (rows, columns, width), what was added to the tokens in a call."""

    def read(model: Any, grid: tuple[int, int]) -> torch.Tensor:
        inner, seen = model.model.diffusion_model, []
        joint, embedded = type(inner).forward_core_with_concat, []
        hook = inner.x_embedder.register_forward_hook(lambda module, args, out: embedded.append(out.clone()))
        inner.forward_core_with_concat = lambda image, *args, **kw: (
            seen.append(image.clone()) or joint(inner, image, *args, **kw)
        )
        try:
            predict(model, noise(KIND, grid), SIGMA, KIND.prompt())
        finally:
            hook.remove()
            del inner.forward_core_with_concat
        return (seen[0] - embedded[0])[0].unflatten(0, grid)

    return read


def formula(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Positions of the test models' table at places between its own; its step is 1."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def line(places: torch.Tensor) -> torch.Tensor:
        angles = places.double()[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    across, down, shape = line(columns), line(rows), (len(rows), len(columns), -1)
    return torch.cat([across[None].expand(shape), down[:, None].expand(shape)], dim=-1).float()


@pytest.mark.parametrize("grid", [(5, 5), (3, 4)], ids=str)
def test_within_the_table_nothing_changes(host, pack, grid):
    model, x = build(), noise(KIND, grid)
    clone = with_windows(host, model)
    own, ours = (each.get_model_object("diffusion_model.cropped_pos_embed") for each in (model, clone))
    assert own != ours
    assert torch.equal(ours(x.shape[-2:]), own(x.shape[-2:]))


@pytest.mark.parametrize(
    ("grid", "rows", "columns"),
    [
        ((10, 10), torch.arange(10) * 0.5 - 0.25, torch.arange(10) * 0.5 - 0.25),
        ((4, 10), torch.arange(4) * 0.5 + 1.25, torch.arange(10) * 0.5 - 0.25),
    ],
    ids=["square", "wide"],
)
def test_a_longer_picture_is_spread_over_the_table(host, positions, grid, rows, columns):
    found = positions(with_windows(host, build()), grid)
    assert torch.allclose(found, formula(rows, columns, found.shape[-1]), atol=1e-4)


def test_the_patch_goes_with_the_clone(host, positions):
    model = build()
    clone, grid = with_windows(host, model), (6, 6)
    assert positions(clone, grid).isfinite().all()
    with pytest.raises(AssertionError):
        positions(model, grid)
    again = with_windows(host, clone)
    assert torch.equal(positions(again, grid), positions(clone, grid)), "a second CLEAR node changes nothing"


def test_a_learned_table_is_refused_in_words(host, positions):
    model = build()
    model.model.diffusion_model.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    clone = with_windows(host, model)
    with pytest.raises(
        ValueError, match=r"the latent is 12 x 12 cells, but the model has positions for 10 a side, and"
    ):
        positions(clone, (6, 6))
    assert positions(clone, (5, 5)).isfinite().all()
