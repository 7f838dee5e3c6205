"""Measures the locality of the tiny FLUX at one size, and what its laboratory records of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core import ClearSpec
from clear_core.dense_blocks import dense_blocks_text
from clear_core.distill.model_content import content_of
from clear_core.distill.samples import Batch
from clear_core.inspection.locality.attentions import Attentions
from clear_core.inspection.locality.measure import Subject, in_windows
from clear_core.inspection.locality.run import Run
from clear_core.inspection.locality.settings import LocalitySettings
from clear_core.inspection.locality.summary import (
    distance_errors,
    head_quantiles,
    local_shares,
    mean,
    spec_of,
    text_shares,
    window_errors,
)
from clear_core.layout import TOKEN_PIXELS
from clear_core.progress import Bar

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.data import draw_latents
from ..tiny_flux.evaluate import seeded_noise
from ..tiny_flux.model import GUIDANCE
from ..tiny_flux.weights import MODEL_FILE, load_tiny_flux
from .guidance_run import several_things

LEVELS = (0.3, 0.6, 0.9)

EXTENTS: dict[int, tuple[int, tuple[float, ...]]] = {256: (4, LEVELS), 512: (2, LEVELS), 1024: (1, (0.6,))}
"""Number of scenes and noise levels by side in px: the work of one call grows with its fourth power."""

OTHER_SIDES = EXTENTS[1024]

OF_THE_SIDE = 8
"""The windows' radius is this part of the side, as in the hybrid laboratory's flows."""


def check_side(side: int) -> None:
    """Refuse a side of whose eighth no window can be made.

    Raises:
        ValueError: It is no multiple of 128 px.
    """
    if side < 1 or side % (TOKEN_PIXELS * OF_THE_SIDE):
        raise ValueError(f"sides has {side}; expected a multiple of {TOKEN_PIXELS * OF_THE_SIDE} px.")


def pictures(side: int) -> list[Batch]:
    """Drawn scenes with noise, one in a batch."""
    count, _ = EXTENTS.get(side, OTHER_SIDES)
    scenes = several_things(count)
    latents, noise = draw_latents(scenes, (side, side)), seeded_noise(count, (side, side), 7)
    found: list[Batch] = []
    for index, scene in enumerate(scenes):
        context, pooled = encode_captions([scene.caption])
        one = slice(index, index + 1)
        found.append(Batch(latents[one], {"prompt_embeds": context, "pooled": pooled}, noise[one], torch.ones(1)))
    return found


def measure_side(side: int, model: Path | None, out: Path, bar: Bar[Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record of a size, and the maps of its middle query.

    Args:
        side: In px.
        model: The tiny FLUX's file; None is the committed one.
        out: Keeps what is done, a folder for each size.
        bar: Counts calls of the model.
    """
    file = model or MODEL_FILE
    spec = ClearSpec(side // TOKEN_PIXELS // OF_THE_SIDE)
    _, levels = EXTENTS.get(side, OTHER_SIDES)
    settings = LocalitySettings(spec, levels=levels, guidance=GUIDANCE)
    subject = Subject(load_tiny_flux(file), pictures(side), settings)
    about = {"model": "tiny FLUX", "model_content": content_of(str(file)), "versions": {"torch": torch.__version__}}
    run = Run(subject, out / str(side), about, bar.update)
    blocks = subject.shape.block_ids
    places = [(picture, level) for picture in range(len(subject.pictures)) for level in levels]
    bar.reset(run.total + len(blocks) * len(places))
    record = run.record()
    with Attentions(subject.transformer) as attentions:
        # Every choice of one block, so that the proposed one can be compared with the others.
        for block in blocks:
            name, attend = dense_blocks_text([block]), in_windows(spec, frozenset(blocks) - {block})

            def error(picture: int, level: float, attend: Any = attend) -> float:
                return subject.error(attentions, picture, level, attend)

            record.setdefault("one_dense", {})[name] = mean(
                run.value(f"but_{name}_{picture}_{level!r}", 1, partial(error, picture, level))
                for picture, level in places
            )
    return record, run.maps


def laboratory_record(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The laboratory's record: means over scenes and noise levels."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "model_content": records[0]["model_content"],
        "sides": [_side(record) for record in records],
    }


def _side(record: dict[str, Any]) -> dict[str, Any]:
    height, _ = record["grid"]
    return {
        "side": height * TOKEN_PIXELS,
        "scenes": record["pictures"],
        "levels": record["settings"]["levels"],
        "radius": spec_of(record).radius,
        "radii": record["settings"]["radii"],
        "within": {name: shares.mean(0).tolist() for name, shares in local_shares(record).items()},
        "quantiles": head_quantiles(record).tolist(),
        "text": text_shares(record),
        "limits": record["settings"]["limits"],
        **{side: distance_errors(record, side) for side in ("far", "near")},
        "windows": window_errors(record),
        "one_dense": record["one_dense"],
        "proposal": record["proposal"],
    }
