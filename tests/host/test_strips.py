"""One condition in strips on the clones of the host's MultiGPU node: the picture of one device."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.devices import loaded_flux, on_devices
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.sampling import run_node

RADIUS, STEPS, CLOSE = 3, 4, 1e-5
GRID = (25, 22)  # Latents: 13 x 11 tokens, the last row half a token.


@pytest.fixture
def compare(host, count, clear_node, run):
    """``compare(positive, **settings)``: the largest difference between one device and several, and what is said."""

    def both(
        positive: list,
        *,
        negative: list | None = None,
        latent: Any = None,
        expect: str = "strips on",
        grid: tuple[int, int] = GRID,
        **widgets: Any,
    ) -> tuple[float, str]:
        graph = {"latent": noise(*grid) * 0, "steps": STEPS, "cfg": 1.0 if negative is None else 3.0}
        graph |= {"positive": positive, "negative": negative, **(latent or {})}
        model = clear_node(loaded_flux(host), **{"radius": RADIUS, **widgets})
        alone = run(model, **graph)
        with Recorder() as log:
            several = run(on_devices(host, model, count), **graph)
        said = [line for line in log.messages() if "strips" in line]
        assert expect in said[0], said
        return float((several - alone).abs().max() / alone.abs().max()), said[0]

    return both


def test_a_plain_run_is_the_one_of_one_device(compare, count):
    difference, said = compare(prompt())
    assert difference < CLOSE
    names = ", ".join(["cpu", "cpu:1", "cpu:2"][:count])
    assert said == f"CLEAR: {GRID[1] * 8} x {GRID[0] * 8} px in {count} strips on {names}"


@pytest.mark.parametrize(
    "widgets",
    [
        {"weights_name": "tiny/clear_local_4_down_2.safetensors", "radius": 0},
        {"down_factor": 3},
        {"radius": 9},
        {"dense_blocks": "0, 3"},
        {"end_percent": 0.6},
        {"ntk_factor": 4.0, "ntk": "fading", "proportional_attention": "on"},
        {"backend": "gather"},
    ],
    ids=["distilled", "pooled", "wide", "dense-blocks", "dense-steps", "stretched", "gather"],
)
def test_settings(compare, widgets):
    assert compare(prompt(), **widgets)[0] < CLOSE


def test_reference_latents(compare):
    references = [noise(6, 9, seed=3), noise(5, 4, seed=4)]
    for method in ("index", "offset", "uxo"):
        difference, _ = compare(prompt(reference_latents=references, reference_latents_method=method))
        assert difference < CLOSE, method


def test_a_mask_on_a_condition(compare):
    mask = torch.zeros(1, *GRID)
    mask[:, 4:19, 3:] = 0.7
    assert compare(prompt(mask=mask, strength=0.8))[0] < CLOSE


def test_an_area_is_cut_into_strips_of_its_own(compare, count):
    area = prompt(seed=5, area=(15, 12, 6, 5), strength=1.5)
    difference, said = compare(area)
    assert difference < CLOSE and "96 x 120 px" in said


def test_a_noise_mask(compare):
    mask = torch.zeros(1, 1, GRID[0] * 8, GRID[1] * 8)
    mask[..., 40:150, 30:] = 1
    assert compare(prompt(), latent={"latent": noise(*GRID, seed=8), "noise_mask": mask, "denoise": 0.8})[0] < CLOSE


@pytest.mark.parametrize("layout", ["xlabs", "union", "inpaint"])
@pytest.mark.parametrize("windows", ["on", "off"])
def test_controlnets(compare, load, applied, layout, windows):
    """Only those that take latents run at a size of half a token in the host."""
    grid = (24, 22) if layout == "xlabs" else GRID
    assert compare(applied(load(layout), prompt()), controlnet=windows, grid=grid)[0] < CLOSE


def test_two_controlnets_of_one_chain(compare, load, applied):
    chain = applied(load("inpaint"), applied(load("union"), prompt()))
    assert compare(chain, controlnet="on")[0] < CLOSE


def test_a_batch(compare):
    assert compare(prompt(), latent={"latent": noise(*GRID, batch=2) * 0})[0] < CLOSE


def test_fewer_conditions_than_devices_are_strips_and_as_many_are_the_hosts(compare, count, host, clear_node, run):
    graph = {"positive": prompt(), "negative": prompt(5, seed=9), "latent": noise(*GRID) * 0, "cfg": 3.0}
    if count > 2:
        assert compare(graph["positive"], negative=graph["negative"])[0] < CLOSE
        return
    model = clear_node(loaded_flux(host), radius=RADIUS)
    with Recorder() as log:
        several = run(on_devices(host, model, count), **graph)
    assert not [line for line in log.messages() if "strips" in line]
    assert torch.allclose(several, run(model, **graph), atol=CLOSE)


def test_a_prompt_and_an_area_at_once(host, count, clear_node, run):
    """Two conditions in one list: of two devices each gets one from the host, three share both."""
    graph = {"positive": [*prompt(), *prompt(seed=5, area=(15, 12, 6, 5), strength=1.5)], "latent": noise(*GRID) * 0}
    model = clear_node(loaded_flux(host), radius=RADIUS)
    with Recorder() as log:
        several = run(on_devices(host, model, count), **graph)
    assert bool([line for line in log.messages() if "strips on" in line]) == (count == 3)
    assert torch.allclose(several, run(model, **graph), atol=CLOSE)


def test_fewer_rows_than_devices(compare, count):
    positive, latent = prompt(), {"latent": noise(4, 22) * 0}
    difference, said = compare(positive, latent=latent)
    assert difference < CLOSE and "in 2 strips" in said


def test_what_needs_the_whole_picture_stays_on_one_device(compare, host, load, applied):
    mask = torch.ones(1, GRID[0] * 8, GRID[1] * 8)
    (masked,) = run_node(
        host.stock("ConditioningSetMask"), conditioning=prompt(), mask=mask, strength=1.0, set_cond_area="default"
    )
    assert compare(masked)[0] < CLOSE
    reason = "an attention mask belongs to the whole picture, so it is not cut into strips"
    seen = torch.ones(1, 7 + 13 * 11, 7 + 13 * 11)
    assert compare(prompt(attention_mask=seen, attention_mask_img_shape=(13, 11)), expect=reason)[0] < CLOSE


def test_another_nodes_patch_stays_on_one_device(host, count, clear_node, run):
    model = clear_node(loaded_flux(host), radius=RADIUS)

    def brighten(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(x + x.mean(), *args, **kwargs)

    model.add_wrapper_with_key("diffusion_model", "brighten", brighten)
    graph = {"positive": prompt(), "latent": noise(*GRID) * 0}
    alone = run(model, **graph)
    with Recorder() as log:
        several = run(on_devices(host, model, count), **graph)
    said = [line for line in log.messages() if "strips" in line]
    assert len(said) == 1 and "brighten" in said[0] and "may need the whole picture" in said[0]
    assert torch.allclose(several, alone, atol=CLOSE)


def test_a_mask_that_a_patch_makes_is_an_error_in_words(host, count, clear_node, run, monkeypatch, host_part):
    """Where nothing foretells it: the run ends in one sentence."""
    model = clear_node(loaded_flux(host), radius=RADIUS)
    call = host_part("model.attention_override").WindowCall
    attend = call.attend
    monkeypatch.setattr(
        call, "attend", lambda self, func, *args, **kw: attend(self, func, *args, **{**kw, "mask": torch.ones(1)})
    )
    with pytest.raises(ValueError, match="attention mask.*take MultiGPU CFG Split off"):
        run(on_devices(host, model, count), positive=prompt(), latent=noise(*GRID) * 0)


def failing(model: Any, at: torch.device, error: Exception, after: int = 5) -> Any:
    """The model whose attention fails on one device after some calls."""
    calls = {"count": 0}

    def attend(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = (kwargs.get("transformer_options") or {}).get("multigpu_thread_device")
        if device == at:
            calls["count"] += 1
            if calls["count"] > after:
                raise error
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    return model


def threads_named() -> set[int]:
    return {thread.ident for thread in threading.enumerate()}


@pytest.mark.parametrize("at", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("kind", ["memory", "error"])
def test_a_failure_on_one_device_ends_the_run_and_the_next_one_works(host, count, clear_node, run, at, kind):
    import comfy.model_management

    error = {
        "memory": comfy.model_management.OOM_EXCEPTION("out of memory on one device"),
        "error": RuntimeError("out of order on one device"),
    }[kind]
    graph = {"positive": prompt(), "latent": noise(*GRID) * 0}
    plain = clear_node(loaded_flux(host), radius=RADIUS)
    expected, before = run(plain, **graph), threads_named()
    base = failing(loaded_flux(host), [torch.device("cpu"), torch.device("cpu", 1)][at], error)
    model = on_devices(host, clear_node(base, radius=RADIUS, dense_blocks="0-3"), count)
    began = time.monotonic()
    with pytest.raises(type(error), match="on one device"):
        run(model, **graph)
    assert time.monotonic() - began < 5
    assert threads_named() <= before and not comfy.model_management.processing_interrupted()
    assert torch.allclose(run(on_devices(host, plain, count), **graph), expected, atol=CLOSE)


def test_an_interrupt_ends_all_devices_within_two_seconds(host, count, clear_node, run):
    import comfy.model_management

    graph = {"positive": prompt(), "latent": noise(96, 96) * 0, "steps": 400}
    model = on_devices(host, clear_node(loaded_flux(host), radius=RADIUS), count)
    before, pressed = threads_named(), []

    def press() -> None:
        pressed.append(time.monotonic())
        comfy.model_management.interrupt_current_processing(True)

    timer = threading.Timer(1.5, press)
    timer.start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, **graph)
    assert time.monotonic() - pressed[0] < 2
    timer.join()
    assert threads_named() <= before and not comfy.model_management.processing_interrupted()
    assert run(model, **{**graph, "steps": 1, "latent": noise(*GRID) * 0}).isfinite().all()


def test_nothing_stays_on_the_model(host, count, clear_node, run):
    plain = loaded_flux(host)
    graph = {"positive": prompt(), "latent": noise(*GRID) * 0}
    stock = run(plain, **graph)
    run(on_devices(host, clear_node(plain, radius=RADIUS), count), **graph)
    assert torch.equal(run(plain, **graph), stock)
    assert "calc_cond_batch" not in plain.wrappers
