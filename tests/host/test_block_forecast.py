"""Blocks that cannot be computed in chunks are planned as whole ones, before the first call."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch

from tests.host.support_comfy.memory_counts import SIGMA, Planner, counted_peak, noise, prompt, tokens_of
from tests.host.support_comfy.sampling import predict

BLOCK = "diffusion_model.single_blocks.1"


@pytest.fixture
def planner(pack, clear_node):
    return Planner(pack, clear_node)


def block_of(model: Any) -> Any:
    return model.model.diffusion_model.single_blocks[1]


def their_block(model: Any) -> Any:
    """A block of another class with the same weights, as other packs put in place."""

    class Theirs(type(block_of(model))):
        pass

    theirs = Theirs.__new__(Theirs)
    vars(theirs).update(vars(block_of(model)))
    return theirs


def in_the_compile_wrapper(model: Any) -> Any:
    """The host's own wrapper for compiled modules with a block that computes the same, since compiling takes long."""
    from comfy_api.torch_helpers import torch_compile

    clone = model.clone()
    wrapper = torch_compile.apply_torch_compile_factory({BLOCK: their_block(model)})
    clone.add_wrapper_with_key("apply_model", torch_compile.COMPILE_KEY, wrapper)
    return clone


def compiled(model: Any, *keys: str) -> Any:
    """What TorchCompileModel and KJNodes' block-wise nodes do; "eager" traces the same and compiles at once."""
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    clone = model.clone()
    set_torch_compile_wrapper(model=clone, backend="eager", keys=list(keys or (BLOCK,)))
    return clone


def their_forward(block: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A block's own forward under another name, as packs write it that change a line of it."""
    return type(block).forward(block, *args, **kwargs)


def with_patch(name: str, answer: Callable[..., Any]) -> Callable[[Any], Any]:
    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_patch(answer, name)
        return clone

    return patched


def with_replaced_block(model: Any) -> Any:
    clone = model.clone()
    clone.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "single_block", 1)
    return clone


def with_object(name: str, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.add_object_patch(name, make(model))
        return clone

    return patched


UNCHUNKED = {
    "a block in the compile wrapper": in_the_compile_wrapper,
    "attn1_patch": with_patch("attn1_patch", lambda *_, **__: {}),
    "attn1_output_patch": with_patch("attn1_output_patch", lambda out, _: out),
    "a replaced block": with_replaced_block,
    "a block of its own": with_object(BLOCK, their_block),
    "a forward of its own": with_object(f"{BLOCK}.forward", lambda model: MethodType(their_forward, block_of(model))),
    "a compiled block": compiled,
}
SLOW = "a compiled block"


@pytest.mark.parametrize("why", [pytest.param(why, marks=[pytest.mark.slow] * (why == SLOW)) for why in UNCHUNKED])
def test_blocks_that_cannot_be_chunked_are_planned_as_whole(tiny_flux, planner, monkeypatch, why):
    planner.attend_as_planned(monkeypatch)
    base, x, positive = tiny_flux(), noise(40, 48), prompt()
    model, chunked = planner.clear(UNCHUNKED[why](base)), planner.clear(base)
    ran, planned = planner.chunked_blocks(monkeypatch), planner.plan(model, positive)
    assert planned.calls[0].chunk is None and planner.plan(chunked, positive).calls[0].chunk == 128
    peak = counted_peak(model, x, positive)
    assert block_of(base) not in ran
    predict(chunked, x, SIGMA, positive)
    assert block_of(base) in ran, "what another clone had in place is gone"
    # A single whole block is as wide as four; but where others are chunked, the host does not keep their input.
    assert peak == pytest.approx(planned.peak_bytes(tokens_of(x)), rel=0.06)
    assert peak > 1.2 * planner.plan(chunked, positive).peak_bytes(tokens_of(x))


def test_a_block_of_the_model_s_own_kind_stays_chunked(tiny_flux, planner):
    """Patches inside a block do not keep it from working in chunks."""
    model = tiny_flux()
    model.add_object_patch(f"{BLOCK}.linear1", torch.nn.Linear(256, 1792))
    assert planner.plan(planner.clear(model), prompt()).calls[0].chunk == 128


@pytest.mark.parametrize("place", ["diffusion_model.single_blocks", "diffusion_model"])
def test_a_whole_part_of_another_pack_is_planned_as_whole(tiny_flux, planner, place):
    model = planner.clear(tiny_flux())
    model.add_object_patch(place, model.get_model_object(place))
    assert planner.plan(model, prompt()).calls[0].chunk is None


def test_the_method_of_references_decides(tiny_flux, planner, monkeypatch):
    model, ran = planner.clear(tiny_flux(), 64), planner.chunked_blocks(monkeypatch)
    indexed, at_zero = (
        prompt(reference_latents=[noise(24, 24)], reference_latents_method=method)
        for method in ("index", "index_timestep_zero")
    )
    predict(model, noise(24, 24), SIGMA, indexed)
    assert ran and planner.plan(model, indexed).calls[0].chunk == 64
    # The host gives such a call modulations of its own, which our blocks do not know.
    assert planner.plan(model, at_zero).calls[0].chunk is None


def check_order(planner: Planner, monkeypatch: pytest.MonkeyPatch, model: Any) -> int | None:
    """The planned chunk of a model, after a call that kept to it."""
    planned, ran = planner.plan(model, prompt()).calls[0].chunk, planner.chunked_blocks(monkeypatch)
    predict(model, noise(24, 24), SIGMA, prompt())
    assert planned == (64 if len(ran) == 4 else None)
    return planned


def test_what_is_put_in_place_after_our_wrapper_does_not_count(tiny_flux, planner, monkeypatch):
    base = tiny_flux()
    block = block_of(base)
    assert check_order(planner, monkeypatch, in_the_compile_wrapper(planner.clear(base, 64))) == 64
    monkeypatch.undo()
    assert check_order(planner, monkeypatch, planner.clear(in_the_compile_wrapper(base), 64)) is None
    assert block_of(base) is block


@pytest.mark.slow
@pytest.mark.parametrize("order", ["node first", "compile first"])
@pytest.mark.parametrize("keys", [(BLOCK,), ("diffusion_model",)], ids=["a block", "the model"])
def test_the_plan_knows_what_compiling_leaves(tiny_flux, planner, monkeypatch, keys, order):
    base = tiny_flux()
    model = (
        compiled(planner.clear(base, 64), *keys) if order == "node first" else planner.clear(compiled(base, *keys), 64)
    )
    planned = check_order(planner, monkeypatch, model)
    assert (planned is None) == (order == "compile first" and keys == (BLOCK,))
