"""The hybrid laboratory's record: flows by noise level, and every picture judged against dense attention's."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from clear_core import SequenceLayout, token_grid

from ..tiny_flux.caption import TOKENS, encode_captions
from ..tiny_flux.data import draw_latents
from ..tiny_flux.evaluate import seeded_noise
from ..tiny_flux.model import GUIDANCE, velocity
from ..world import Scene
from .guidance_run import several_things
from .hybrid_attention import Plan, planned
from .hybrid_plans import DENSE, FLOWS, SETTINGS, Setting, fraction
from .hybrid_run import Folder, model_of
from .measure import LEVELS
from .picture_measures import judged

Row = dict[str, Any]


def make_record(folder: Folder) -> dict[str, Any]:
    """Judges the pictures of a folder that holds all of them."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "flows": [flows(side, scenes) for side, scenes in FLOWS],
        "settings": [judged_setting(folder, setting) for setting in SETTINGS],
    }


def flows(side: int, count: int) -> Row:
    """Mean squared distance of the flow to dense attention's by noise level, of drawn scenes of a size."""
    scenes = several_things(count)
    latents, noise = draw_latents(scenes, (side, side)), seeded_noise(count, (side, side), 7)
    wanted = all_flows(DENSE, scenes, latents, noise)
    sequence = SequenceLayout(TOKENS, token_grid(side // 8, side // 8))
    rows: list[Row] = []
    for plan in FLOWS[side, count]:
        found = all_flows(plan, scenes, latents, noise)
        errors = [(one - other).square().mean((1, 2, 3)) for one, other in zip(found, wanted, strict=True)]
        rows.append(
            {
                "plan": plan.name,
                "share": plan.share(sequence, [0.5]),
                "mse": {str(level): each.mean().item() for level, each in zip(LEVELS, errors, strict=True)},
                "by_scene": torch.stack(errors).mean(0).tolist(),
            }
        )
    return {"side": side, "scenes": count, "rows": rows}


@torch.inference_mode()
def all_flows(plan: Plan, scenes: Sequence[Scene], latents: Tensor, noise: Tensor) -> list[Tensor]:
    """The flows at every noise level, (scenes, 16, h, w) each."""
    captions, one = encode_captions([scene.caption for scene in scenes]), torch.ones(len(scenes))
    model, weights = model_of(plan)
    found: list[Tensor] = []
    with planned(model, plan, weights) as at:
        for level in LEVELS:
            at(token_grid(*latents.shape[2:]), level)
            noisy = level * noise + (1 - level) * latents
            found.append(velocity(model, noisy, one * level, *captions, one * GUIDANCE))
    return found


def judged_setting(folder: Folder, setting: Setting) -> Row:
    """The rows of a setting, dense attention's own first."""
    scenes = folder.scenes(setting)
    wanted = folder.latents(setting, DENSE)
    rows: list[Row] = []
    for plan in (DENSE, *SETTINGS[setting]):
        latents = folder.latents(setting, plan)
        rows.append(
            {
                "plan": plan.name,
                "radius": "" if plan.kind == "dense" else fraction(setting, plan),
                "share": setting.share(plan),
            }
            | judged(latents, wanted, scenes)
        )
    return {"setting": setting.name, "scenes": setting.scenes, "steps": len(setting.sigmas) - 1, "rows": rows}


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample)."""
    listed = torch.tensor(list(values), dtype=torch.float64)
    return listed.mean().item(), listed.std().item()
