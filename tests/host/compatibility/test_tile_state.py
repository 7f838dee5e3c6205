"""Caches of other packs in tiles: each tile has its own, and as many steps are saved as of the whole frame."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.host.compatibility.test_own_forward import of_another_host, with_first_block_cache, with_teacache
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.positions import recorded_ids
from tests.host.support_comfy.sampling import relative_error

GRID, TILE, OVERLAP = (8, 16), (8, 10), 4
STEPS, TILES = 8, 2


@pytest.fixture
def sample(tiny_flux, run, in_tiles) -> Callable[..., tuple[torch.Tensor, int]]:
    """``sample(node, tiles)`` is a latent, and how often the model's last block was computed."""

    def of(node: Callable[[Any], Any], tiles: bool) -> tuple[torch.Tensor, int]:
        model, calls = tiny_flux(depth=1, depth_single_blocks=1), []
        block = model.model.diffusion_model.single_blocks[0]
        block.register_forward_hook(lambda *_: calls.append(1))
        model = node(model)
        model = in_tiles(model, GRID, TILE, OVERLAP) if tiles else model
        out = run(model, prompt(), torch.zeros(1, 16, 16, 32), steps=STEPS)
        return out, len(calls)

    return of


def saves_as_much_in_tiles(sample: Callable[..., Any], node: Callable[[Any], Any]) -> None:
    """Fewer calls in the frame, the same share of them in tiles, and no larger change of the result; nothing said."""
    try:
        whole, calls = sample(node, tiles=False)
    except (TypeError, AttributeError) as error:
        reason = of_another_host(str(error))
        if reason is None:
            raise
        pytest.skip(f"the pack fails here without CLEAR too: {reason}")
    with Recorder() as log:
        tiled, in_tiles = sample(node, tiles=True)
    (plain, _), (plain_tiled, _) = (sample(lambda model: model, tiles) for tiles in (False, True))
    assert calls < STEPS and in_tiles == TILES * calls
    assert relative_error(tiled, plain_tiled) < 1.1 * relative_error(whole, plain)
    assert [line for line in log.messages() if "CLEAR" in line] == []


def test_teacache(host, sample, use_pack):
    use_pack("ComfyUI-TeaCache", missing={"comfy.ldm.lightricks.model.precompute_freqs_cis": None})

    saves_as_much_in_tiles(sample, partial(with_teacache, host))


def test_wavespeed(host, sample, use_pack):
    use_pack("Comfy-WaveSpeed")

    saves_as_much_in_tiles(sample, partial(with_first_block_cache, host))


def test_teacaches_own_forward_places_tiles(host, tiny_flux, predict, in_tiles, use_pack):
    """It calls no patch of the host's, and asks the model's embedder."""
    use_pack("ComfyUI-TeaCache", missing={"comfy.ldm.lightricks.model.precompute_freqs_cis": None})
    forward = importlib.import_module(host.stock("TeaCache").__module__).teacache_flux_forward
    model = tiny_flux(depth=1, depth_single_blocks=1)
    flux = model.get_model_object("diffusion_model")

    def own(*args: Any, timestep_zero_index: Any = None, **kwargs: Any) -> torch.Tensor:
        given = inspect.signature(forward).bind(flux, *args, **kwargs)
        given.arguments["transformer_options"] = {**given.arguments["transformer_options"], "enable_teacache": False}
        return forward(*given.args, **given.kwargs)

    model.add_object_patch("diffusion_model.forward_orig", own)
    with recorded_ids() as seen, Recorder() as log:
        predict(in_tiles(model, GRID, TILE, OVERLAP), noise(16, 32), 0.6, prompt())
    starts = [tuple(ids[-80, 1:].tolist()) for ids in seen]
    assert starts == [(0, 0), (0, 6)] and [tuple(ids[-1, 1:].tolist()) for ids in seen] == [(7, 9), (7, 15)]
    assert [line for line in log.messages() if "CLEAR" in line] == []
