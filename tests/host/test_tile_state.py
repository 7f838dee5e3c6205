"""What other nodes keep between calls is kept for each tile: caches, guidance with momentum, counters of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import prompt
from tests.host.support_comfy.sampling import relative_error, run_node

GRID, TILE, OVERLAP = (8, 16), (8, 10), 4
TILES = 2
STEPS = 12
EVERYTHING = 1e9
"""A threshold of a cache."""

HALVES = {"left": torch.cat((torch.ones(1, 16, 8), torch.zeros(1, 16, 24)), -1), "all": torch.ones(1, 16, 32)}


@pytest.fixture
def sample(run) -> Callable[..., torch.Tensor]:
    """``sample(model, ...)`` is the latent of :data:`STEPS` steps of the stock KSampler."""

    def of(model: Any, positive: list | None = None, cfg: float = 1.0, steps: int = STEPS) -> torch.Tensor:
        prompts = (positive or prompt(), torch.zeros(1, 16, 16, 32), prompt(seed=3))
        return run(model, *prompts, steps=steps, cfg=cfg)

    return of


class Pointwise:
    """A model whose answer at each place depends on nothing but that place, so tiles must give the whole frame's.

    It stands where the host calls the diffusion model, inside the wrappers of the nodes that were applied before, and
    asks for positions as a model does.
    """

    def __init__(self) -> None:
        self.calls = 0

    def on(self, model: Any) -> Any:
        def answer(executor: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, *_: Any, **__: Any) -> Any:
            self.calls += 1
            executor.class_obj.pe_embedder(torch.zeros(1, text.shape[1] + x.shape[-2] * x.shape[-1] // 4, 3))
            return torch.sin(3 * x) * 0.5 + t.reshape(-1, 1, 1, 1) * x + text.mean((1, 2)).reshape(-1, 1, 1, 1)

        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "pointwise", answer)
        return clone


@pytest.fixture
def counted(tiny_flux, in_tiles, sample) -> Callable[..., tuple[torch.Tensor, int]]:
    """``counted(node, tiles)`` is the latent of the pointwise model with a node on it, and how often it was called."""

    def run(node: Callable[[Any], Any], tiles: bool, **inputs: Any) -> tuple[torch.Tensor, int]:
        pointwise = Pointwise()
        model = pointwise.on(node(tiny_flux(depth=1, depth_single_blocks=1)))
        out = sample(in_tiles(model, GRID, TILE, OVERLAP) if tiles else model, **inputs)
        return out, pointwise.calls

    return run


def cached(name: str, threshold: float) -> Callable[[Any], Any]:
    """The host's own cache, EasyCache or LazyCache."""
    nodes = importlib.import_module("comfy_extras.nodes_easycache")
    return lambda model: run_node(
        getattr(nodes, f"{name}Node"),
        model=model,
        reuse_threshold=threshold,
        start_percent=0.15,
        end_percent=0.95,
        verbose=False,
    )[0]


@pytest.mark.parametrize("threshold", [0.2, 1.0])
def test_easycache_skips_as_many_steps_of_tiles_as_of_the_frame(counted, threshold):
    node = cached("EasyCache", threshold)
    whole, calls = counted(node, tiles=False)
    assert calls < STEPS, "the frame itself is not cached"
    tiled, in_tiles = counted(node, tiles=True)
    assert in_tiles == TILES * calls
    plain, _ = counted(lambda model: model, tiles=False)
    assert relative_error(tiled, plain) < 1.05 * relative_error(whole, plain) + 1e-5


def test_a_tile_is_answered_with_its_own_residual(counted):
    """At this threshold all steps are skipped that can be, of the frame as of its tiles."""
    (whole, calls), (tiled, in_tiles) = (counted(cached("EasyCache", EVERYTHING), tiles) for tiles in (False, True))
    assert relative_error(tiled, whole) < 1e-5
    assert calls < STEPS / 2 and in_tiles == TILES * calls


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_easycache_where_tiles_have_different_prompts(counted, cfg):
    """Masks leave one tile two prompts and the other tile one."""
    both = prompt(mask=HALVES["left"], mask_strength=1.0) + prompt(seed=5, mask=HALVES["all"], mask_strength=1.0)
    node = cached("EasyCache", EVERYTHING)
    (whole, calls), (tiled, in_tiles) = (counted(node, tiles, positive=both, cfg=cfg) for tiles in (False, True))
    assert relative_error(tiled, whole) < 1e-5
    assert in_tiles == TILES * calls


def test_lazycache_sees_the_whole_frame(counted):
    (whole, calls), (tiled, in_tiles) = (counted(cached("LazyCache", 0.2), tiles) for tiles in (False, True))
    assert calls < STEPS and in_tiles == TILES * calls
    assert relative_error(tiled, whole) < 1e-5


def test_guidance_with_momentum_is_the_whole_frames(counted):
    from comfy_extras.nodes_apg import APG

    def guided(model: Any) -> Any:
        return run_node(APG, model=model, eta=0.5, norm_threshold=3.0, momentum=-0.5)[0]

    whole, tiled = (counted(guided, tiles, cfg=4.0)[0] for tiles in (False, True))
    assert relative_error(tiled, whole) < 1e-5
    assert relative_error(counted(lambda model: model, True, cfg=4.0)[0], whole) > 1e-3


def on_the_model(model: Any) -> Any:
    """As TeaCache keeps the last residual: an attribute of the model itself, for every second step."""
    clone = model.clone()
    flux = clone.get_model_object("diffusion_model")

    def keep(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        flux.calls_so_far = getattr(flux, "calls_so_far", 0) + 1
        if flux.calls_so_far % 2:
            out = executor(x, *args, **kwargs)
            flux.last_residual = out - x
        return x + flux.last_residual

    clone.add_wrapper_with_key("diffusion_model", "cache", keep)
    return clone


class KeysOfTheFirstCall:
    """As the host's FluxKVCache: a patch with a dictionary of what it saw first."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def __call__(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        first = self.kept.setdefault("first", executor(x, *args, **kwargs) - x)
        return x + first

    def on(self, model: Any) -> Any:
        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "cache", self)
        return clone


class Held(KeysOfTheFirstCall):
    """The same in an object that travels in the model's options, and is called by a method."""

    def on(self, model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"]["held"] = self
        clone.set_model_unet_function_wrapper(self.call)
        return clone

    def call(self, apply: Callable[..., Any], args: dict[str, Any]) -> Any:
        return self(lambda x: apply(x, args["timestep"], **args["c"]), args["input"])


NODES = {
    "attribute of the model": lambda: on_the_model,
    "dictionary of a patch": lambda: KeysOfTheFirstCall().on,
    "object in the options": lambda: Held().on,
}


@pytest.mark.parametrize("name", NODES)
def test_what_a_node_keeps_is_kept_per_tile(counted, name):
    (whole, calls), (tiled, in_tiles) = (counted(NODES[name](), tiles) for tiles in (False, True))
    assert relative_error(tiled, whole) < 1e-5
    assert in_tiles == TILES * calls


def test_a_second_run_starts_anew(tiny_flux, in_tiles, sample):
    """What a node leaves behind is the first tile's, as it would be the frame's without tiles."""
    model = in_tiles(Pointwise().on(on_the_model(tiny_flux(depth=1, depth_single_blocks=1))), GRID, TILE, OVERLAP)
    flux = model.get_model_object("diffusion_model")
    runs = []
    for run in (1, 2):
        runs.append(sample(model))
        assert flux.calls_so_far == run * STEPS and flux.last_residual.shape[-1] == 2 * TILE[1]
    assert torch.equal(*runs)


def test_every_tile_has_an_identity_of_its_own(tiny_flux, in_tiles, sample):
    """As the host tells its prompts apart, in every step the same."""
    seen: list[tuple[Any, ...]] = []

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(args[5]["uuids"]))
        return executor(*args, **kwargs)

    model = in_tiles(Pointwise().on(tiny_flux(depth=1, depth_single_blocks=1)), GRID, TILE, OVERLAP)
    model.add_wrapper_with_key("apply_model", "watch", watch)
    sample(model, cfg=2.0, steps=3)
    assert len(seen) == 3 * TILES and seen[:TILES] * 3 == seen
    assert len({uuid for uuids in seen for uuid in uuids}) == 2 * TILES


def with_a_closure(model: Any) -> Any:
    """State that nothing outside the function can reach by name."""
    clone, average = model.clone(), None

    def smooth(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal average
        out = executor(x, *args, **kwargs)
        average = out if average is None else 0.5 * average + 0.5 * out
        return average

    clone.add_wrapper_with_key("diffusion_model", "closure", smooth)
    return clone


def test_state_that_cannot_be_kept_per_tile_is_named_once(counted):
    with Recorder() as log:
        counted(with_a_closure, tiles=True)
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "with_a_closure.<locals>.smooth" in lines[0] and "average" in lines[0]


def test_nodes_without_state_are_not_named(counted):
    with Recorder() as log:
        counted(cached("EasyCache", 0.2), tiles=True)
        counted(on_the_model, tiles=True)
    assert [line for line in log.messages() if "CLEAR" in line] == []
