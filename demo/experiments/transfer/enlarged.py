"""Table 3 of the paper in small: base pictures enlarged two and four times by SDEdit, by every way to attend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import euler, sdedit, sdedit_sigmas

from ...tiny_flux.caption import encode_captions
from ...tiny_flux.codec import decode, encode
from ...tiny_flux.model import GUIDANCE
from ..guidance_methods import enlarge, scene_noise
from ..guidance_run import several_things
from ..kept import kept
from ..picture_measures import judged
from ..subject import COMMITTED, Subject
from .plans import DENSE, Extent, Way


def enlarged_rows(folder: Path, extent: Extent, subject: Subject = COMMITTED) -> Iterator[dict[str, Any]]:
    """A row for each size, strength and way, dense attention's first.

    Args:
        folder: Keeps the latents.
        extent: What is run.
        subject: The model and its windows.
    """
    scenes = several_things(extent.scenes)
    bases = kept(folder / "base.safetensors", lambda: {"latent": base_latents(extent, subject)})["latent"]
    for factor in extent.factors:
        side = factor * extent.base
        starts = encode(enlarge(decode(bases).clamp(0, 1), side))
        for strength in extent.strengths:
            found: dict[Way, Tensor] = {}
            for way in extent.ways:

                def make(way: Way = way, starts: Tensor = starts, strength: float = strength) -> dict[str, Tensor]:
                    return {"latent": redone(way, starts, strength, extent, subject)}

                file = folder / f"{side} px, {strength:g}, {way.name}.safetensors"
                found[way] = kept(file, make)["latent"]
                row = {"side": side, "strength": strength, "window": way.window, "weights": way.weights}
                yield row | judged(found[way], found[DENSE], scenes)


def denoiser_for(transformer: Any, caption: str) -> FluxDenoiser:
    """The model under a caption of the world."""
    return FluxDenoiser(transformer, *encode_captions([caption]), GUIDANCE)


def base_latents(extent: Extent, subject: Subject) -> Tensor:
    """(scenes, 16, h, w): base pictures from noise by dense attention."""
    transformer, sigmas = DENSE.model(subject), sdedit_sigmas(extent.steps, 1.0)
    return torch.cat(
        [
            euler(denoiser_for(transformer, scene.caption), scene_noise(index, extent.base), sigmas)
            for index, scene in enumerate(several_things(extent.scenes))
        ]
    )


def redone(way: Way, starts: Tensor, strength: float, extent: Extent, subject: Subject) -> Tensor:
    """(scenes, 16, h, w): enlarged pictures redone at their size."""
    transformer, side = way.model(subject), 8 * starts.shape[2]
    return torch.cat(
        [
            sdedit(
                denoiser_for(transformer, scene.caption),
                starts[index : index + 1],
                scene_noise(index, side),
                steps=extent.steps,
                strength=strength,
            )
            for index, scene in enumerate(several_things(extent.scenes))
        ]
    )
