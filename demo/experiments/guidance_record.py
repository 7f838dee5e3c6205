"""The guidance laboratory's record: every picture judged, the detector validated, the steps timed."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clear_core.guidance import SCHEDULES, Alignment, HiFlowState, align, guided

from ..tiny_flux.codec import decode, encode
from ..tiny_flux.data import held_out_scenes
from ..world import Scene, draw_scene
from .guidance_methods import ABOVE, BASE_SIDE, METHODS, STEPS, Attention, enlarge, scene_noise
from .guidance_run import ABOVE_START, AT, BEYOND, SPEC, Folder, denoiser_of, several_things, window_of
from .measure import mean
from .objects import count_things
from .picture_measures import detail, layout_agreement, seams

Row = dict[str, Any]
"""``side`` in px, ``attention``, ``method``, and the means of :func:`judged`."""

VALIDATION = 60
"""Scenes that the detector is validated on."""


def make_record(folder: Folder, scenes: int, above: int) -> dict[str, Any]:
    """Judges a folder's pictures of the first scenes; ``above`` is how many scenes have pictures of ``BEYOND`` px."""
    chosen = several_things(scenes)
    bases = [shown(folder.base(index, scene).latent) for index, scene in enumerate(chosen)]
    rows = [
        {"side": AT, "attention": attention, "method": method.name}
        | judged([shown(folder.at(i, scene, attention, method)) for i, scene in enumerate(chosen)], bases, chosen)
        for attention, methods in METHODS.items()
        for method in methods
    ]
    fewer = chosen[:above]
    beyond = [
        {"side": BEYOND, "attention": "distilled", "method": method.name}
        | judged([shown(folder.beyond(i, scene, method)) for i, scene in enumerate(fewer)], bases, fewer)
        for method in ABOVE
    ]
    return {
        "scenes": [scene.caption for scene in chosen],
        "scenes_beyond": above,
        "base_side": BASE_SIDE,
        "steps": STEPS,
        "window": str(SPEC),
        "beyond_from": ABOVE_START.name,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "detector": validated(),
        "references": [*references(chosen, bases, AT), *references(fewer, bases, BEYOND)],
        "rows": rows,
        "beyond": beyond,
        "seconds": timed(),
    }


def judged(pictures: Sequence[Tensor], bases: Sequence[Tensor], scenes: Sequence[Scene]) -> Row:
    """Means over scenes: layout, share of things found, surplus blobs, seams, detail over the drawn picture's."""
    counts = [count_things(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    side = pictures[0].shape[-1]
    return {
        # There may be fewer pictures than bases.
        "layout": mean(layout_agreement(*pair) for pair in zip(pictures, bases, strict=False)),
        "found": sum(count.found for count in counts) / sum(count.wanted for count in counts),
        "surplus": mean(count.surplus for count in counts),
        "seams": mean(seams(picture) for picture in pictures),
        "detail": mean(
            detail(picture) / detail(drawn(scene, side)) for picture, scene in zip(pictures, scenes, strict=True)
        ),
    }


def references(scenes: Sequence[Scene], bases: Sequence[Tensor], side: int) -> list[Row]:
    """What the measures say of drawn pictures and of enlarged base pictures."""
    large = [enlarge(base[None], side)[0] for base in bases[: len(scenes)]]
    return [
        {"side": side, "method": "drawn"} | judged([drawn(scene, side) for scene in scenes], bases, scenes),
        {"side": side, "method": "base, enlarged"} | judged(large, bases, scenes),
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


def drawn(scene: Scene, side: int) -> Tensor:
    """(3, side, side): the scene as the world draws it, through the codec."""
    return shown(encode(torch.from_numpy(draw_scene(scene, side, side)).permute(2, 0, 1)[None]))
