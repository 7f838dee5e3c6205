"""The memory part that rides on CLEARAttention's model: same numbers, a lower peak, a truthful estimate."""

from __future__ import annotations

import importlib
import threading
from types import MethodType
from typing import Any

import pytest
import torch

from tests.host.support_comfy.live_bytes import LiveBytes
from tests.host.support_comfy.sampling import conditioning, predict, relative_error, run_node

SIGMA = 0.6


def noise(height: int, width: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def prompt(text: int = 7, **extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, text, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


@pytest.fixture(scope="module")
def memory(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.host.model.memory")


@pytest.fixture
def with_chunks(memory):
    """``with_chunks(model, chunk)`` is a clone whose blocks work on ``chunk`` tokens at a time."""

    def install(model: Any, chunk: int) -> Any:
        clone = model.clone()
        memory.MemoryPatch(chunk).install(clone)
        return clone

    return install


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "dense"])
@pytest.mark.parametrize("chunk", [1, 20, 59], ids=str)
def test_chunks_give_the_same_numbers(tiny_flux, clear_node, with_chunks, chunk, windows):
    model, x = tiny_flux(), noise(20, 24, batch=2)
    model = clear_node(model, radius=3) if windows else model
    positive = prompt(reference_latents=[noise(6, 8)])
    expected = predict(model, x, SIGMA, positive)
    assert relative_error(predict(with_chunks(model, chunk), x, SIGMA, positive), expected) < 2e-6


def test_a_control_and_lora_still_count_in_chunks(tiny_flux, with_chunks):
    """What is added between the blocks, and weights that are patched when they are cast."""
    model, x = tiny_flux(), noise(20, 24)
    key = "diffusion_model.single_blocks.0.linear1.weight"
    weight = model.model.state_dict()[key]
    model.add_patches({key: ("diff", (0.1 * torch.ones_like(weight),))}, 1.0)
    expected = predict(model, x, SIGMA, prompt())
    assert relative_error(predict(with_chunks(model, 16), x, SIGMA, prompt()), expected) < 2e-6


def test_short_sequences_and_foreign_block_patches_are_left_alone(tiny_flux, with_chunks, memory, monkeypatch):
    ran = []
    original = memory.ChunkedCall.run
    monkeypatch.setattr(memory.ChunkedCall, "run", lambda *args: ran.append(args[1]) or original(*args))
    model, x = tiny_flux(), noise(20, 24)
    predict(with_chunks(model, 120), x, SIGMA, prompt())
    assert ran == []
    predict(with_chunks(model, 40), x, SIGMA, prompt())
    assert len(ran) == 4
    theirs = model.clone()
    theirs.set_model_patch_replace(
        lambda args, extra: ran.append("theirs") or extra["original_block"](args), "dit", "single_block", 1
    )
    ran.clear()
    patched = with_chunks(theirs, 40)
    assert relative_error(predict(patched, x, SIGMA, prompt()), predict(model, x, SIGMA, prompt())) < 2e-6
    assert len(ran) == 4 and ran[3] == "theirs"


@pytest.mark.parametrize("how", ["object patch", "attribute", "class", "hook", "pre-hook"])
def test_blocks_that_others_compute_are_left_to_them(tiny_flux, with_chunks, monkeypatch, how):
    model, x = tiny_flux(), noise(20, 24)
    block = model.model.diffusion_model.single_blocks[0]  # the last one's size is normalised away
    theirs, original, handle = model.clone(), type(block).forward, None

    def doubled(block: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * original(block, *args, **kwargs)

    if how == "object patch":
        theirs.add_object_patch("diffusion_model.single_blocks.0.forward", MethodType(doubled, block))
    elif how == "attribute":
        monkeypatch.setattr(block, "forward", MethodType(doubled, block), raising=False)
    elif how == "class":
        monkeypatch.setattr(type(block), "forward", doubled)
    elif how == "hook":
        handle = block.register_forward_hook(lambda block, args, out: 2 * out)
    else:
        handle = block.register_forward_pre_hook(
            lambda block, args, kwargs: ((2 * args[0], *args[1:]), kwargs), with_kwargs=True
        )
    try:
        expected = predict(theirs, x, SIGMA, prompt())
        assert relative_error(predict(with_chunks(theirs, 16), x, SIGMA, prompt()), expected) < 2e-6
    finally:
        if handle:
            handle.remove()
        monkeypatch.undo()
    assert relative_error(predict(model.clone(), x, SIGMA, prompt()), expected) > 1e-2


def test_an_interrupt_lands_between_chunks(tiny_flux, with_chunks):
    import comfy.model_management

    model, x = with_chunks(tiny_flux(), 16), noise(20, 24)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        predict(model, x, SIGMA, prompt())


def counted_peak(model: Any, x: torch.Tensor, positive: list) -> int:
    """Most bytes alive in one call of the model, without what was there before: indices and masks are kept."""
    predict(model, x, SIGMA, positive)
    with LiveBytes() as count:
        predict(model, x, SIGMA, positive)
    return count.peak


@pytest.mark.parametrize("chunk", [128, 4096], ids=["chunked", "whole"])
def test_the_engine_stays_within_what_is_planned_for_it(tiny_flux, clear_node, with_chunks, memory, chunk):
    model = with_chunks(clear_node(tiny_flux(), radius=3, backend="gather"), chunk)
    planned = memory.memory_plan(model, [{"cross_attn": prompt()[0][0]}]).peak_bytes(48 * 48)
    assert counted_peak(model, noise(96, 96), prompt()) < 1.05 * planned


def test_chunks_lower_the_counted_peak(tiny_flux, clear_node, with_chunks):
    model, x = clear_node(tiny_flux(), radius=3, backend="gather"), noise(96, 96)
    whole, chunked = (counted_peak(with_chunks(model, chunk), x, prompt()) for chunk in (4096, 128))
    assert chunked < 0.8 * whole


@pytest.mark.parametrize("side", [128, 512, 1024], ids=str)
def test_the_host_is_told_what_a_call_takes(tiny_flux, clear_node, memory, side):
    """The node's model brings the estimate to every sampler, and leaves the model's own factor as it was."""
    model = clear_node(tiny_flux(), radius=3)
    patch = memory.MemoryPatch()
    own = model.model.memory_required([1, 16, side, side])
    told = []

    def executor(patcher: Any, shape: Any, conds: Any) -> None:
        told.append(patcher.model.memory_required([1, *shape[1:]]))

    patch.prepare(executor, model, (1, 16, side, side), {})
    assert told[0] == memory.memory_plan(model).peak_bytes((side // 2) ** 2)
    assert model.model.memory_required([1, 16, side, side]) == own and "memory_required" not in vars(model.model)


def test_two_samplings_at_once_do_not_share_an_estimate(tiny_flux, clear_node, memory):
    """The base model is one object: another sampling on it, with CLEAR or without, keeps its own estimate."""
    plain = tiny_flux()
    model, shape, base = clear_node(plain, radius=3), (1, 16, 1024, 1024), plain.model
    patch, told = memory.MemoryPatch(), {}
    host = base.memory_required(shape)
    begun, ended = threading.Event(), threading.Event()

    def first(*_: Any) -> None:
        begun.set()
        assert ended.wait(30)
        told["last"] = base.memory_required(shape)

    def second(*_: Any) -> None:
        told["second"] = base.memory_required(shape)

    thread = threading.Thread(target=patch.prepare, args=(first, model, shape, {}))
    thread.start()
    try:
        assert begun.wait(30)
        told["without CLEAR"] = base.memory_required(shape)
        patch.prepare(second, model, shape, {})
    finally:
        ended.set()
        thread.join()
    ours = memory.memory_plan(model).peak_bytes(512**2)
    assert told["without CLEAR"] == host and host != pytest.approx(ours, rel=0.1)
    assert told["second"] == pytest.approx(ours) and told["last"] == pytest.approx(ours)
    assert base.memory_required(shape) == host


def test_another_pack_s_estimate_comes_back(tiny_flux, clear_node, memory):
    model = clear_node(tiny_flux(), radius=3)
    model.model.memory_required = theirs = lambda shape, **_: 1000.0
    memory.MemoryPatch().prepare(lambda *_: None, model, (1, 16, 64, 64), {})
    assert model.model.memory_required is theirs


def test_a_factor_set_by_hand_stands(tiny_flux, clear_node, memory):
    """As KJNodes' ModelMemoryUsageFactorOverride sets it around the host's estimate."""
    model = clear_node(tiny_flux(), radius=3)
    model.model.memory_usage_factor *= 2
    shape, told = (1, 16, 64, 64), []
    by_hand = model.model.memory_required(shape)
    memory.MemoryPatch().prepare(
        lambda patcher, *_: told.append(patcher.model.memory_required(shape)), model, shape, {}
    )
    assert told == [by_hand]


def test_a_plain_ksampler_has_the_memory_part(host, tiny_flux, clear_node, memory, monkeypatch):
    seen = []
    original = memory.MemoryPatch.required
    monkeypatch.setattr(memory.MemoryPatch, "required", lambda self, *args: seen.append(args) or original(self, *args))
    with torch.inference_mode():
        run_node(
            host.stock("KSampler"),
            model=clear_node(tiny_flux(), radius=3),
            seed=0,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=prompt(),
            negative=prompt(),
            latent_image={"samples": noise(16, 16)},
            denoise=1.0,
        )
    assert [shape[-2:] for _, _, shape in seen] == [[16, 16]] * 2  # for two prompts at once, and for one


def test_two_nodes_in_series_have_it_once(tiny_flux, clear_node, memory):
    model = clear_node(clear_node(tiny_flux(), radius=3), radius=4)
    for kind in ("apply_model", "prepare_sampling"):
        assert len(model.get_wrappers(kind, memory.KEY)) == 1
