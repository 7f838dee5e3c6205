"""Positions of tiles under forwards of other packs, which lay out tokens or embed positions in a way of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.control_cases import run
from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.positions import recorded_ids
from tests.host.support_comfy.sampling import predict

TEXT, SIGMA = 7, 0.6
GRID, TILE, STARTS = (300, 4), (160, 4), (0, 140)
"""Rows past 256, which bfloat16 cannot tell apart."""


@pytest.fixture(scope="module")
def in_tiles(pack) -> Callable[[Any], Any]:
    """``in_tiles(model)`` runs a frame of :data:`GRID` in two tiles."""
    module = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.tiled_model")
    layout = module.TileLayout(GRID, TILE, 2)
    return lambda model: module.TiledModel(layout, lambda done, tiles: None).install(model)


def lined(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(0, count - 1, count, dtype=dtype)


def counted(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(count).to(dtype)


def own_forward(line: Callable[..., torch.Tensor], dtype: torch.dtype, embed: Any = None) -> Callable[[Any], Any]:
    """A pack (RES4LYF) that replaces the whole forward: it lays out tokens and calls no patch of the host's.

    Args:
        line: Positions along one side.
        dtype: Of the positions.
        embed: Makes rotations of (B, tokens, 3) ids; None asks the model's own embedder.
    """

    def forward(self: Any, x: torch.Tensor, timestep: Any, context: torch.Tensor, y: Any, guidance: Any, **_: Any):
        from comfy.ldm.flux.layers import timestep_embedding

        batch, _, height, width = x.shape
        rows, columns = height // 2, width // 2
        patches = x.unflatten(2, (rows, 2)).unflatten(4, (columns, 2)).permute(0, 2, 4, 1, 3, 5)
        img, txt = self.img_in(patches.reshape(batch, rows * columns, -1)), self.txt_in(context)
        ids = torch.zeros(batch, txt.shape[1] + rows * columns, 3, dtype=dtype)
        ids[:, txt.shape[1] :, 1] = line(rows, dtype).repeat_interleave(columns)
        ids[:, txt.shape[1] :, 2] = line(columns, dtype).repeat(rows)
        vec = self.time_in(timestep_embedding(timestep, 256)) + self.vector_in(y)
        vec = vec + self.guidance_in(timestep_embedding(guidance, 256))
        pe = (embed or self.pe_embedder)(ids)
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe)
        out = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            out = block(out, vec=vec, pe=pe)
        out = self.final_layer(out[:, txt.shape[1] :], vec).reshape(batch, rows, columns, -1, 2, 2)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)

    def on(model: Any) -> Any:
        clone = model.clone()
        flux = clone.get_model_object("diffusion_model")
        clone.add_object_patch("diffusion_model.forward", MethodType(forward, flux))
        return clone

    return on


def flux() -> Any:
    return build_flux(depth=1, depth_single_blocks=1)


def lines_of(log: Recorder) -> list[str]:
    return [line for line in log.messages() if "CLEAR" in line and "position" in line]


@pytest.mark.parametrize("windows", [False, True], ids=["dense", "windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("line", [lined, counted], ids=lambda line: line.__name__)
def test_tiles_of_a_forward_of_its_own_are_exact(host, clear_node, in_tiles, line, dtype, windows):
    model = own_forward(line, dtype)(clear_node(flux(), radius=3) if windows else flux())
    with recorded_ids() as seen, Recorder() as log:
        predict(in_tiles(model), noise(600, 8), SIGMA, prompt(TEXT))
    assert len(seen) == len(STARTS) and lines_of(log) == []
    for ids, start in zip(seen, STARTS, strict=True):
        assert torch.equal(ids[:TEXT], torch.zeros(TEXT, 3))
        assert torch.equal(ids[TEXT:, 1], torch.arange(start, start + TILE[0]).repeat_interleave(TILE[1]).float())
        assert torch.equal(ids[TEXT:, 2], torch.arange(TILE[1]).repeat(TILE[0]).float())


def embedded_alone() -> Callable[[Any], Any]:
    """A pack with rotations of its own."""
    from comfy.ldm.flux.layers import EmbedND

    return own_forward(lined, torch.float32, EmbedND(128, 10000, [16, 56, 56]))


def test_positions_of_another_kind_are_named_once(host, in_tiles):
    model = in_tiles(embedded_alone()(flux()))
    with Recorder() as log:
        for _ in range(2):
            predict(model, noise(600, 8), SIGMA, prompt(TEXT))
    assert len(lines_of(log)) == 1 and "did not ask" in lines_of(log)[0]


def test_whole_frames_are_not_named(host, clear_node):
    with Recorder() as log:
        predict(embedded_alone()(clear_node(flux(), radius=3)), noise(600, 8), SIGMA, prompt(TEXT))
    assert lines_of(log) == []


def test_an_answer_from_a_cache_is_not_named(host, in_tiles):
    """It needs no positions; the computed calls before it have asked for them."""
    asked: list[bool] = []

    def cache(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(True)
        return executor(x, *args, **kwargs) if len(asked) <= len(STARTS) else x

    model = in_tiles(flux())
    model.add_wrapper_with_key("diffusion_model", "cache", cache)
    with Recorder() as log:
        run(model, noise(600, 8), prompt(TEXT), prompt(TEXT), steps=3)
    assert len(asked) == 3 * len(STARTS) and lines_of(log) == []
