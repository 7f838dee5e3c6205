"""ControlNets beside a CLEAR model while it samples and afterwards: nothing stays, nobody else notices."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.host.support_comfy.control_cases import RADIUS, SIGMA, noise, prompt, run
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import relative_error, run_node


def attributes(control: Any) -> dict[str, Any]:
    return {
        name: dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        for name, value in vars(control).items()
    }


def modules(control: Any) -> dict[str, Any]:
    return dict(control.control_model.named_modules()) | {"": vars(control.control_model).keys() | {}}


@pytest.mark.parametrize("how", ["done", "interrupt", "error"])
def test_a_run_leaves_nothing_behind(tiny_flux, clear_node, load, applied, how):
    import comfy.model_management
    import comfy.samplers

    class StopError(Exception):
        pass

    def end(step: int, *_: Any) -> None:
        if how == "interrupt":
            comfy.model_management.interrupt_current_processing()
        if how == "error":
            raise StopError

    model, latent, control = tiny_flux(), noise(24, 36), load("union")
    positive, negative = applied(control, prompt(), prompt(8))
    placed = positive[0][1]["control"]
    stock = run(model, latent, positive, negative)
    before, before_modules = attributes(placed), modules(control)
    patched = clear_node(model, radius=RADIUS, controlnet="on")
    ended = {"done": (), "interrupt": comfy.model_management.InterruptProcessingException, "error": StopError}[how]
    if ended:
        with pytest.raises(ended):
            run(patched, latent, positive, negative, callback=end)
    else:
        assert relative_error(run(patched, latent, positive, negative), stock) > 1e-4
    comfy.model_management.interrupt_current_processing(False)
    assert modules(control) == before_modules
    # Only a run that ends well is tidied by the host.
    left = {} if how == "done" else {"timestep_range", "model_sampling_current"}
    after = attributes(placed)
    assert {name for name in before if after[name] is not before[name] and after[name] != before[name]} <= set(left)
    assert positive[0][1]["control"] is placed and placed.control_model is control.control_model
    assert torch.equal(run(model, latent, positive, negative), stock)


def test_the_runs_conditioning_is_put_back_when_it_ends_early(tiny_flux, clear_node, load, applied):
    import comfy.samplers

    class Failing(comfy.samplers.Sampler):
        def sample(self, guider: Any, *_: Any, **__: Any) -> torch.Tensor:
            self.inside = guider.conds["positive"][0]["control"]
            raise KeyError

    sampler, positive = Failing(), applied(load("union"), prompt())
    guider = comfy.samplers.CFGGuider(clear_node(tiny_flux(), radius=RADIUS, controlnet="on"))
    guider.inner_set_conds({"positive": positive})
    with pytest.raises(KeyError):
        guider.sample(noise(24, 36), torch.zeros(1, 16, 24, 36), sampler, torch.tensor([SIGMA, 0.0]), seed=0)
    placed = positive[0][1]["control"]
    assert sampler.inside is not placed and sampler.inside.control_model is not placed.control_model
    assert guider.conds["positive"][0]["control"] is placed


def test_clones_for_other_cards_get_the_window_and_the_tile(pack, tiny_flux, clear_node, load, applied):
    """ComfyUI keeps a copy of a ControlNet for every further card, and asks the one at hand for it."""
    import comfy.samplers

    class Caught(comfy.samplers.Sampler):
        def sample(
            self, guider: Any, sigmas: Any, extra_args: Any, callback: Any, noise: torch.Tensor, *_: Any, **__: Any
        ) -> torch.Tensor:
            self.control = guider.conds["positive"][0]["control"]
            return noise

    sampler, positive, card = Caught(), applied(load("union"), prompt()), torch.device("meta")
    placed = positive[0][1]["control"]
    # Deep copies in the host; whether it is asked for does not depend on that.
    clones = {card: placed.copy()}
    clones[card].multigpu_clones = {}
    guider = comfy.samplers.CFGGuider(clear_node(tiny_flux(), radius=RADIUS, controlnet="on"))
    guider.inner_set_conds({"positive": positive})
    frame = noise(24, 36)
    placed.multigpu_clones = clones
    guider.sample(frame, torch.zeros(1, 16, 24, 36), sampler, torch.tensor([SIGMA, 0.0]), seed=0)
    clone = sampler.control.multigpu_clones[card]
    assert clone is not clones[card] and type(clone.control_model) is type(sampler.control.control_model)
    assert type(clone.control_model) is not type(clones[card].control_model)
    crop = importlib.import_module(f"{pack.__name__}.nodes.host.crop.crop_control")
    part = crop.PictureCrop(importlib.import_module(f"{pack.__name__}.clear_core.sdedit").Tile(4, 0, 6, 8), (24, 36))
    tile = crop.crop_control(sampler.control, part, move=False)
    assert tile.multigpu_clones[card].cond_hint_original.shape[-2:] == (12 * 8, 16 * 8)
    assert tile.multigpu_clones[card].control_model is clone.control_model


def test_another_sampler_may_use_the_controlnet_at_the_same_time(tiny_flux, clear_node, load, applied):
    """A stock run and a CLEAR run meet at every step, each with its own model and the same ControlNet file."""
    stock_model, clear_model = tiny_flux(), tiny_flux()
    control, latent = load("union"), noise(24, 36)
    patched = clear_node(clear_model, radius=RADIUS, controlnet="on")
    # The stock node makes a copy for every use; copies share the model.
    uses = [applied(control, prompt(), prompt(8)) for _ in range(2)]
    expected = [run(model, latent, *use, steps=4) for model, use in zip((stock_model, patched), uses, strict=True)]
    meet, results = threading.Barrier(2, timeout=120), [None, None]

    def sample(place: int, model: Any) -> None:
        try:
            results[place] = run(model, latent, *uses[place], steps=4, callback=lambda *_: meet.wait())
        except BaseException:
            meet.abort()
            raise

    # Both are on the CPU already: what is loaded in threads is the host's own matter.
    threads = [threading.Thread(target=sample, args=each) for each in enumerate((stock_model, patched))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize(
    "tiles", [{}, {"tile_width": 48, "tile_height": 64, "tile_overlap": 16}], ids=["whole", "tiles"]
)
def test_the_old_apply_node_needs_no_negative_prompt(host, tiny_flux, clear_node, load, tiles):
    """Without one the host finds nothing to put the ControlNet on, and divides by zero."""
    if "ClearTestPixels" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(Path(__file__).parent / "support_comfy" / "test_only_pixels.py")
    image = picture(32, 32)
    (positive,) = run_node(
        host.stock("ControlNetApply"), conditioning=prompt(), control_net=load("xlabs"), image=image, strength=0.8
    )
    inputs = {
        "image": image,
        "model": clear_node(tiny_flux(), radius=3),
        "vae": run_node(host.stock("ClearTestPixels"))[0],
        "steps": 2,
        **tiles,
    }

    def latent(**more: Any) -> torch.Tensor:
        with torch.inference_mode():
            return run_node(host.stock("CLEARUpscale"), **inputs, **more)[1]["samples"]

    alone = latent(positive=positive)
    assert torch.equal(alone, latent(positive=positive, negative=prompt(8)))
    assert relative_error(latent(positive=prompt()), alone) > 1e-4
