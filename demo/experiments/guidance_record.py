"""The guidance laboratory's record: every picture judged, the detector validated, the steps timed."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clear_core.guidance import SCHEDULES, Alignment, HiFlowState, align, guided

from ..tiny_flux.codec import decode, encode
from ..tiny_flux.data import held_out_scenes
from ..world import Scene, draw_scene
from .guidance_methods import ABOVE, BASE_SIDE, COMPARED, MAIN, STEPS, Attention, Method, enlarge, scene_noise
from .guidance_run import ABOVE_START, AT, BEYOND, SPEC, Folder, denoiser_of, several_things, window_of
from .measure import mean
from .objects import count_things, found_share
from .picture_measures import FINE_CELLS, detail, layout_agreement, seams

Row = dict[str, Any]
"""Figures by name; of a method, ``attention``, ``method`` and the means of :func:`judged`."""

VALIDATION = 60
"""Scenes that the detector is validated on."""


def make_record(folder: Folder, scenes: int, few: int) -> dict[str, Any]:
    """Judges a folder's pictures; ``scenes`` and ``few`` as in :func:`.guidance_run.wanted`."""
    chosen = several_things(scenes)
    bases = [shown(folder.base(index, scene).latent) for index, scene in enumerate(chosen)]

    def row(attention: Attention, method: Method, side: int, scenes: Sequence[Scene]) -> Row:
        pictures = [shown(folder.large(index, scene, attention, method, side)) for index, scene in enumerate(scenes)]
        return {"attention": attention, "method": method.name} | judged(pictures, bases, scenes)

    first = chosen[:few]
    return {
        "scenes": [scene.caption for scene in chosen],
        "few": few,
        "base_side": BASE_SIDE,
        "steps": STEPS,
        "window": str(SPEC),
        "beyond_from": ABOVE_START.name,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "detector": validated(),
        "main": {
            "side": AT,
            "references": references(chosen, bases, AT),
            "rows": [row("distilled", method, AT, chosen) for method in MAIN],
        },
        "compared": {
            "side": AT,
            "references": [],
            "rows": [row(one, method, AT, first) for one, methods in COMPARED.items() for method in methods],
        },
        "beyond": {
            "side": BEYOND,
            "references": references(first, bases, BEYOND),
            "rows": [row("distilled", method, BEYOND, first) for method in ABOVE],
        },
        "seconds": timed(),
    }


def judged(pictures: Sequence[Tensor], bases: Sequence[Tensor], scenes: Sequence[Scene]) -> Row:
    """Means over scenes.

    Returns:
        ``layout`` and ``form``: agreement with the base in coarse and in fine cells. ``found``: share of the captions'
        things. ``surplus``: further blobs in one picture. ``seams``. ``detail``: over the drawn picture's.
    """
    counts = [count_things(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    side = pictures[0].shape[-1]
    return {
        # There may be fewer pictures than bases.
        "layout": mean(layout_agreement(*pair) for pair in zip(pictures, bases, strict=False)),
        "form": mean(layout_agreement(*pair, FINE_CELLS) for pair in zip(pictures, bases, strict=False)),
        "found": found_share(counts),
        "surplus": mean(count.surplus for count in counts),
        "seams": mean(seams(picture) for picture in pictures),
        "detail": mean(
            detail(picture) / detail(drawn(scene, side)) for picture, scene in zip(pictures, scenes, strict=True)
        ),
    }


def references(scenes: Sequence[Scene], bases: Sequence[Tensor], side: int) -> list[Row]:
    """What the measures say of drawn pictures, of the base pictures, and of these enlarged."""
    small = bases[: len(scenes)]
    large = [enlarge(base[None], side)[0] for base in small]
    return [
        {"method": "drawn"} | judged([drawn(scene, side) for scene in scenes], bases, scenes),
        {"method": "base at its own size"} | judged(small, bases, scenes),
        {"method": "base, enlarged"} | judged(large, bases, scenes),
    ]


def validated() -> Row:
    """The detector on drawn held-out scenes of both sizes, and on 2 x 2 copies of each."""
    scenes = held_out_scenes(VALIDATION)
    once = [count_things(drawn(scene, side), scene) for scene in scenes for side in (BASE_SIDE, AT)]
    copied = [count_things(drawn(scene, BASE_SIDE).repeat(1, 2, 2), scene) for scene in scenes]
    return {
        "scenes": VALIDATION,
        "sides": [BASE_SIDE, AT],
        "wanted": sum(count.wanted for count in once),
        "found": sum(count.found for count in once),
        "surplus": sum(count.surplus for count in once),
        "copies": 4 * sum(count.wanted for count in copied),
        "copies_found": sum(count.found for count in copied),
        "copies_surplus": sum(count.surplus for count in copied),
    }


@torch.inference_mode()
def timed() -> Row:
    """Seconds of one step by attention and side, and of one correction by kind; medians."""
    scene = several_things(1)[0]
    kinds: list[tuple[Attention, int]] = [("dense", AT), ("plain", AT), ("distilled", AT), ("distilled", BEYOND)]
    steps: list[Row] = []
    for attention, side in kinds:
        denoiser, noise = denoiser_of(scene.caption, attention), scene_noise(0, side)
        with window_of(denoiser, attention, side):
            step = median_seconds(lambda: denoiser(noise, 1.0), 4)  # noqa: B023  called in the same round
        steps.append({"attention": attention, "side": side, "step": step, "guidance": corrections(noise)})
    return {"threads": torch.get_num_threads(), "rows": steps}


def corrections(noise: Tensor) -> Row:
    """Seconds of the corrections of one step, for latents like ``noise``."""
    guide, before = noise.flip(3), HiFlowState(noise, noise)
    found: Row = {
        schedule: median_seconds(lambda: guided(noise, guide, 0.4, schedule, 1, 1.0), 20)  # noqa: B023
        for schedule in SCHEDULES
    }
    return found | {"hiflow": median_seconds(lambda: align(noise, guide, noise, 0.7, 0.4, Alignment(), before), 20)}


def median_seconds(work: Any, times: int) -> float:
    """Median seconds of calls, after a first one that does not count."""
    work()
    seconds: list[float] = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def shown(latent: Tensor) -> Tensor:
    """(3, H, W), 0 to 1."""
    return decode(latent)[0].clamp(0, 1)


@lru_cache(maxsize=16)
def drawn(scene: Scene, side: int) -> Tensor:
    """(3, side, side): the scene as the world draws it, through the codec."""
    return shown(encode(torch.from_numpy(draw_scene(scene, side, side)).permute(2, 0, 1)[None]))
