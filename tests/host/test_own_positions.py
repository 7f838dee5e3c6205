"""Positions of tiles under forwards of other packs, which lay out tokens or embed positions in a way of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.control_cases import run
from tests.host.support_comfy.fault_nodes import lined, own_forward
from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.positions import recorded_ids
from tests.host.support_comfy.sampling import predict

TEXT, SIGMA = 7, 0.6
GRID, TILE, STARTS = (300, 4), (160, 4), (0, 140)
"""Rows past 256, which bfloat16 cannot tell apart."""


def counted(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(count).to(dtype)


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
        predict(in_tiles(model, GRID, TILE), noise(600, 8), SIGMA, prompt(TEXT))
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
    model = in_tiles(embedded_alone()(flux()), GRID, TILE)
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

    model = in_tiles(flux(), GRID, TILE)
    model.add_wrapper_with_key("diffusion_model", "cache", cache)
    with Recorder() as log:
        run(model, noise(600, 8), prompt(TEXT), prompt(TEXT), steps=3)
    assert len(asked) == 3 * len(STARTS) and lines_of(log) == []
