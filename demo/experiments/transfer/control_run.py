"""Table 5 of the paper in small: a ControlNet that was trained with dense attention, used with windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clear_core.integrations.flux_denoiser import flux_arguments, pack_latent
from clear_core.sdedit import euler, sdedit_sigmas

from ...tiny_flux.caption import encode_captions
from ...tiny_flux.codec import decode
from ...tiny_flux.data import HELD_OUT, draw_latents
from ...tiny_flux.model import GUIDANCE
from ...world import draw_scene, random_scene
from ..guidance_methods import scene_noise
from ..guidance_run import several_things
from ..kept import kept
from ..measure import mean
from ..picture_measures import judged
from ..subject import COMMITTED, Subject
from .control import ControlledDenoiser, condition_error, condition_tokens, controlled_tokens, new_control
from .plans import CONDITIONS, DENSE, Condition, Extent, Way

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

RATE, WARM_UP = 5e-4, 20
# Seed of the scenes: none of the model's training, of the windows' or of an evaluation.
SEED = HELD_OUT + 3


def drawn(scenes: list[Any], size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) pictures of scenes."""
    return torch.stack([torch.from_numpy(draw_scene(scene, *size)).permute(2, 0, 1) for scene in scenes])


def trained_control(
    kind: Condition, extent: Extent, subject: Subject, on_step: Callable[[], None] = lambda: None
) -> FluxControlNetModel:
    """A ControlNet of some steps of flow matching; the model is dense, and stays as it is."""
    transformer = DENSE.model(subject)
    net = new_control(transformer).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(extent.control_steps):
        height, width, count = extent.control_sizes[step % len(extent.control_sizes)]
        rng = np.random.default_rng((SEED, step))
        scenes = [random_scene(rng) for _ in range(count)]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        latents = draw_latents(scenes, (height, width))
        noise = torch.randn(latents.shape, generator=generator)
        sigma = torch.sigmoid(torch.randn(count, generator=generator) * 1.2 + 0.8)
        level = sigma[:, None, None, None]
        captions = encode_captions([scene.caption for scene in scenes])
        condition = condition_tokens(kind, drawn(scenes, (height, width)))
        arguments = flux_arguments(
            level * noise + (1 - level) * latents, sigma, *captions, torch.full((count,), GUIDANCE)
        )
        with torch.autocast("cpu", torch.bfloat16):
            tokens = controlled_tokens(transformer, net, condition, arguments)
        (tokens.float() - pack_latent(noise - latents)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rate = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / extent.control_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        on_step()
    return net.eval().requires_grad_(False)


def control_rows(
    folder: Path, extent: Extent, subject: Subject = COMMITTED, on_step: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """A row for each condition and way, pictures from noise; before dense attention's, one without a ControlNet.

    Args:
        folder: Keeps ControlNets and latents.
        extent: What is run.
        subject: The model and its windows.
        on_step: Called after each step of training.
    """
    side, scenes = extent.control_side, several_things(extent.scenes)
    wanted = drawn(scenes, (side, side))
    for kind in CONDITIONS:
        net = new_control(DENSE.model(subject)).eval().requires_grad_(False)

        def make_free(kind: Condition = kind, net: FluxControlNetModel = net) -> dict[str, Tensor]:
            return sampled(kind, DENSE, net, extent, wanted, subject)

        free = kept(folder / "free.safetensors", make_free)["latent"]
        yield {"condition": kind, "window": "dense, no ControlNet", "weights": DENSE.weights} | compared(
            kind, free, free, scenes, wanted
        )

        def make(kind: Condition = kind) -> dict[str, Tensor]:
            # Under inference mode nothing could be trained.
            with torch.inference_mode(False), torch.enable_grad():
                return dict(trained_control(kind, extent, subject, on_step).state_dict())

        net.load_state_dict(kept(folder / f"{kind} control.safetensors", make))
        found: dict[Way, Tensor] = {}
        for way in extent.ways_under_control:
            file = folder / f"{kind}, {way.name}.safetensors"

            def make_latents(
                kind: Condition = kind, way: Way = way, net: FluxControlNetModel = net
            ) -> dict[str, Tensor]:
                return sampled(kind, way, net, extent, wanted, subject)

            found[way] = kept(file, make_latents)["latent"]
            row = {"condition": kind, "window": way.window, "weights": way.weights}
            yield row | compared(kind, found[way], found[DENSE], scenes, wanted)


def sampled(
    kind: Condition, way: Way, net: FluxControlNetModel, extent: Extent, wanted: Tensor, subject: Subject
) -> dict[str, Tensor]:
    """(scenes, 16, h, w) latents of pictures from noise under the conditions of ``wanted``."""
    transformer, sigmas = way.model(subject), sdedit_sigmas(extent.steps, 1.0)
    latents: list[Tensor] = []
    for index, scene in enumerate(several_things(extent.scenes)):
        condition = condition_tokens(kind, wanted[index : index + 1])
        denoiser = ControlledDenoiser(transformer, net, condition, *encode_captions([scene.caption]))
        latents.append(euler(denoiser, scene_noise(index, extent.control_side), sigmas))
    return {"latent": torch.cat(latents)}


def compared(kind: Condition, latents: Tensor, dense: Tensor, scenes: list[Any], wanted: Tensor) -> dict[str, Any]:
    """Measures against dense attention's pictures, and the error of the condition against the drawn ones."""
    pictures = decode(latents).clamp(0, 1)
    errors = [condition_error(kind, *pair) for pair in zip(pictures, wanted, strict=True)]
    return {"condition_error": mean(errors)} | judged(latents, dense, scenes)
