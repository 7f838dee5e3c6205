"""Makes the pictures, each once, and judges them against the drawn ones of their size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import euler, noised, sdedit_sigmas, wavelet_color_fix

from ...tiny_flux.caption import encode_captions
from ...tiny_flux.codec import decode, encode
from ...tiny_flux.model import GUIDANCE
from ...world import Scene
from ..guidance_methods import enlarge, scene_noise
from ..guidance_record import drawn
from ..guidance_run import several_things
from ..kept import kept
from ..measure import mean
from ..objects import count_things, found_share
from ..picture_measures import FINE_CELLS, detail, layout_agreement, levels_apart
from ..subject import COMMITTED, Subject
from .plans import Extent, Recipe


def rows(folder: Path, extent: Extent, subject: Subject = COMMITTED) -> Iterator[dict[str, Any]]:
    """A row for each strength and recipe, without and with the colour fix.

    Args:
        folder: Keeps the latents.
        extent: What is run.
        subject: The model and its windows.
    """
    scenes = several_things(extent.scenes)
    for strength in extent.strengths:
        for recipe in extent.recipes:
            latents = latents_of(folder, extent, strength, recipe, subject)
            # From noise there is no picture whose colours could be kept.
            for fix in ("none", "wavelet") if strength < 1 else ("none",):
                pictures = [
                    picture_of(latents[index : index + 1], scene, extent, fix) for index, scene in enumerate(scenes)
                ]
                yield {"strength": strength, "recipe": replace(recipe, color_fix=fix).name} | judged(
                    pictures, scenes, extent
                )


def start_of(scene: Scene, extent: Extent) -> Tensor:
    """(1, 3, side, side): a drawn picture, enlarged."""
    return enlarge(drawn(scene, extent.start)[None], extent.side)


def latents_of(folder: Path, extent: Extent, strength: float, recipe: Recipe, subject: Subject = COMMITTED) -> Tensor:
    """(scenes, 16, h, w)."""
    file = folder / f"{strength:g}, {recipe.sampled.name}.safetensors"
    return kept(file, lambda: {"latent": sampled(extent, strength, recipe, subject)})["latent"]


def sampled(extent: Extent, strength: float, recipe: Recipe, subject: Subject) -> Tensor:
    """(scenes, 16, h, w), made by windows on distilled weights."""
    transformer = subject.distilled(extent.spec)
    apply_clear(
        transformer,
        extent.spec,
        ntk=recipe.ntk,
        ntk_factor=recipe.factor,
        proportional_attention="on" if recipe.proportional else "off",
    )
    sigmas = sdedit_sigmas(extent.steps, strength)
    latents: list[Tensor] = []
    for index, scene in enumerate(several_things(extent.scenes)):
        start = scene_noise(index, extent.side)
        if strength < 1:
            start = noised(encode(start_of(scene, extent)), start, float(sigmas[0]))
        denoiser = FluxDenoiser(transformer, *encode_captions([scene.caption]), GUIDANCE)
        latents.append(euler(denoiser, start, sigmas))
    return torch.cat(latents)


def picture_of(latent: Tensor, scene: Scene, extent: Extent, color_fix: str = "none") -> Tensor:
    """(3, side, side) of a latent (1, 16, h, w)."""
    picture = decode(latent).clamp(0, 1)
    if color_fix == "none":
        return picture[0]
    channels_last = (each.movedim(1, -1) for each in (picture, start_of(scene, extent).clamp(0, 1)))
    return wavelet_color_fix(*channels_last)[0].movedim(-1, 0)


def judged(pictures: list[Tensor], scenes: list[Scene], extent: Extent) -> dict[str, Any]:
    """Measures against the drawn pictures of the large size.

    Returns:
        Means of ``layout``, ``form``, ``surplus``, of ``detail`` over the drawn picture's, and of ``colour``, the root
        mean square difference of the means over cells of 1/16 of the side, in levels of 255; and the share ``found``.
    """
    wanted = [drawn(scene, extent.side) for scene in scenes]
    counts = [count_things(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    pairs = list(zip(pictures, wanted, strict=True))
    return {
        "layout": mean(layout_agreement(*pair) for pair in pairs),
        "form": mean(layout_agreement(*pair, min(FINE_CELLS, extent.side // 8)) for pair in pairs),
        "found": found_share(counts),
        "surplus": mean(count.surplus for count in counts),
        "detail": mean(detail(one) / detail(other) for one, other in pairs),
        "colour": mean(colour_error(*pair) for pair in pairs),
    }


def colour_error(picture: Tensor, wanted: Tensor) -> float:
    """Of two (3, H, W) pictures."""
    cell = picture.shape[-1] // 16
    one, other = (torch.nn.functional.avg_pool2d(each, cell) for each in (picture, wanted))
    return levels_apart(one, other)
