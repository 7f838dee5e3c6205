"""The models of the laboratory of distillation, and drawn scenes as samples for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.distill.samples import SampleFolder, sample_path, write_sample

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.data import draw_latents, held_out_scenes
from ..tiny_flux.evaluate import caption_match, flow_error
from ..tiny_flux.weights import load_tiny_flux
from ..tiny_sd3.weights import load_tiny_sd3
from ..training import train
from ..world import Scene
from . import distil_flux2
from .distil_plans import Extent, Subject
from .train import training_scene

VALIDATED = 16
"""Held-out scenes by which the small FLUX.2 is judged."""
TEACHER_SIDE = 256
"""Side in px of its largest training pictures."""


@dataclass(frozen=True)
class Model:
    """How a subject's model and its samples are made.

    Attributes:
        load: Of the laboratory's folder and the extent: the model, float32.
        parts: Of (1, 16, H, W) latents and a caption: the parts of a sample.
    """

    load: Callable[[Path, Extent], Any]
    parts: Callable[[Tensor, str], dict[str, Tensor]]


def pooled_parts(latents: Tensor, caption: str) -> dict[str, Tensor]:
    context, pooled = encode_captions([caption])
    return {"latents": latents[0], "prompt_embeds": context[0], "pooled": pooled[0]}


def guided_parts(latents: Tensor, caption: str) -> dict[str, Tensor]:
    # The tiny SD3 was trained with one caption in ten empty, so it can be guided by a second call.
    context, pooled = encode_captions([""])
    return pooled_parts(latents, caption) | {"negative_embeds": context[0], "negative_pooled": pooled[0]}


def flux2_parts(latents: Tensor, caption: str) -> dict[str, Tensor]:
    return {"latents": distil_flux2.cells(latents)[0], "prompt_embeds": encode_captions([caption])[0][0]}


def trained_flux2(out: Path, extent: Extent) -> Any:
    """The small FLUX.2, trained if its file is not there; the training resumes after a stop."""
    folder = out / "flux2_teacher"
    path = folder / f"{distil_flux2.RECIPE.name}.safetensors"
    if not path.exists():
        recipe = replace(distil_flux2.RECIPE, stages=extent.stages)
        train(recipe, folder, seed=0, save_every=60, compiled=extent.compiled, device=torch.device("cpu"))
    return distil_flux2.load_flux2(path)


MODELS: dict[str, Model] = {
    "flux": Model(lambda _out, _extent: load_tiny_flux(), pooled_parts),
    "sd3": Model(lambda _out, _extent: load_tiny_sd3(), guided_parts),
    "flux2": Model(trained_flux2, flux2_parts),
}


def teacher_record(out: Path, extent: Extent) -> dict[str, Any]:
    """What the small FLUX.2 is worth as a teacher: its errors on held-out scenes."""
    model, scenes = trained_flux2(out, extent), held_out_scenes(min(VALIDATED, 2 * extent.judged))
    side = extent.side or TEACHER_SIDE
    size = (side, side)
    errors = flow_error(model, scenes, size, velocity=distil_flux2.velocity)
    return {
        "steps": sum(stage.steps for stage in extent.stages),
        "numbers": sum(parameter.numel() for parameter in model.parameters()),
        "scenes": len(scenes),
        "side": side,
        "flow_mse": {str(level): error for level, error in errors.items()},
        "caption_match": caption_match(model, scenes, size, velocity=distil_flux2.velocity),
    }


@dataclass(frozen=True)
class Samples:
    """The samples of one subject.

    Attributes:
        trained: Those of the training.
        judged: Held-out ones, for the record.
        compared: Other held-out ones, for the choice of rates.
    """

    trained: SampleFolder
    judged: SampleFolder
    compared: SampleFolder


def samples_of(subject: Subject, out: Path, extent: Extent) -> Samples:
    """Drawn scenes in the parts that the subject's family needs; files that are there are kept."""
    make = functools.partial(_written, subject=subject, side=extent.side_of(subject))
    folder = out / subject.key
    return Samples(
        make(folder / "samples", [training_scene(index) for index in range(extent.samples)]),
        make(folder / "judged", held_out_scenes(extent.judged)),
        make(folder / "compared", held_out_scenes(extent.compared, first=extent.judged)),
    )


def _written(folder: Path, scenes: Sequence[Scene], subject: Subject, side: int) -> SampleFolder:
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        if not sample_path(folder, index).exists():
            write_sample(folder, index, **MODELS[subject.key].parts(draw_latents([scene], (side, side)), scene.caption))
    return SampleFolder(folder, end=len(scenes))
