"""The record of the laboratory of positions: flows by noise level, and every picture judged against the drawn scene."""

from __future__ import annotations

import platform
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiny_flux.data import draw_latents
from ..tiny_flux.evaluate import psnr, seeded_noise
from .guidance_methods import enlarge
from .guidance_record import drawn, judged, shown
from .measure import LEVELS
from .positions_methods import BASE_SIDE, METHODS, SCENES, SETTINGS, STEPS, TABLE_SIDE, TRAINED, Method, Setting
from .positions_run import Folder, PositionedDenoiser

Row = dict[str, Any]

BEFORE = (TABLE_SIDE, 688)
"""Sides in px of the flows of the model before the last stage of its training."""


def make_record(folder: Folder, before: Folder | None) -> dict[str, Any]:
    """Judges the pictures of a folder that holds all of them.

    Args:
        before: With the model from before the last stage of its training, of which only flows are measured.
    """
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": "cpu",
        "machine": platform.machine(),
        "scenes": [scene.caption for scene in folder.scenes],
        "steps": STEPS,
        "table_side": TABLE_SIDE,
        "base_side": BASE_SIDE,
        "trained_tokens": TRAINED,
        "flows": all_flows(folder, METHODS),
        "flows_before": all_flows(before, {side: METHODS[side] for side in BEFORE}) if before else [],
        "settings": [judged_setting(folder, setting) for setting in SETTINGS],
    }


def all_flows(folder: Folder, methods: dict[int, tuple[Method, ...]]) -> list[Row]:
    """The flows in the size of the training, and in others."""
    return [flows(folder, side, each) for side, each in ({BASE_SIDE: (Method("own"),)} | methods).items()]


def flows(folder: Folder, side: int, methods: tuple[Method, ...]) -> Row:
    """Mean squared error of the flow by noise level, of the drawn scenes in a size."""
    latents, noise = draw_latents(folder.scenes, (side, side)), seeded_noise(SCENES, (side, side), 7)
    rows: list[Row] = []
    for method in methods:
        errors = flow_errors(folder, method, latents, noise)
        rows.append(
            {
                "method": method.name,
                "mse": {str(level): each.mean().item() for level, each in zip(LEVELS, errors, strict=True)},
                "by_scene": errors.mean(0).tolist(),
            }
        )
    return {"side": side, "rows": rows}


@torch.inference_mode()
def flow_errors(folder: Folder, method: Method, latents: Tensor, noise: Tensor) -> Tensor:
    """(levels, scenes)."""
    denoiser = PositionedDenoiser(folder.model, method, [scene.caption for scene in folder.scenes[: len(latents)]])
    return torch.stack(
        [
            (denoiser(level * noise + (1 - level) * latents, level) - (noise - latents)).square().mean((1, 2, 3))
            for level in LEVELS
        ]
    )


def judged_setting(folder: Folder, setting: Setting) -> Row:
    """The rows of a setting, and what the measures say of the drawn and of the enlarged pictures."""
    side, scenes = setting.side, folder.scenes
    small = torch.stack([drawn(scene, BASE_SIDE) for scene in scenes])
    references = {
        "drawn": torch.stack([drawn(scene, side) for scene in scenes]),
        "small picture, enlarged": enlarge(small, side),
    }
    methods = {
        method.name: torch.cat([shown(each[None])[None] for each in folder.latents(setting, method)])
        for method in SETTINGS[setting]
    }
    found = [
        {"method": name, "psnr": [psnr(*pair) for pair in zip(pictures, references["drawn"], strict=True)]}
        | {"psnr_small": [psnr(*pair) for pair in zip(made_small(pictures), small, strict=True)]}
        | judged(list(pictures), list(small), scenes)
        for name, pictures in (references | methods).items()
    ]
    return {
        "setting": setting.name,
        "steps": len(setting.sigmas) - 1,
        "references": found[: len(references)],
        "rows": found[len(references) :],
    }


def made_small(pictures: Tensor) -> Tensor:
    """(B, 3, ., .) pictures at the side of those that were redrawn."""
    return F.interpolate(pictures, size=(BASE_SIDE, BASE_SIDE), mode="area")
