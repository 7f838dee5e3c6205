"""Distils windows for the tiny FLUX, through the same code that does it for any FLUX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from clear_core import ClearSpec
from clear_core.distill.samples import SampleFolder, sample_path, write_sample
from clear_core.distill.student import file_name, save_weights
from clear_core.distill.train import TrainConfig, check_config, distil, set_up

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.data import HELD_OUT, draw_latents
from ..tiny_flux.weights import load_tiny_flux
from ..world import Scene, random_scene

# Grids of 32 x 32 and 24 x 24 tokens: larger than most windows, so that there is something to learn.
SIZES = ((512, 512), (512, 512), (384, 384))
# Scenes of another seed than the model's training and every judgement.
SEED = HELD_OUT + 1


def training_scene(number: int) -> Scene:
    return random_scene(np.random.default_rng((SEED, number)))


def make_samples(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = SIZES) -> SampleFolder:
    """Drawn scenes as samples, of ``sizes`` = (height, width) px in turn; those already in the folder are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if not sample_path(folder, number).exists():
            scene = training_scene(number)
            context, pooled = encode_captions([scene.caption])
            write_sample(folder, number, draw_latents([scene], sizes[number % len(sizes)])[0], context[0], pooled[0])
    return SampleFolder(folder, end=count)


def distil_window(
    spec: ClearSpec,
    samples: SampleFolder,
    out: Path,
    *,
    steps: int,
    batch: int = 4,
    rate: float = 3e-4,
    save_every: int = 50,
    model: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Distils one window and returns the path of its weights; goes on where it stopped.

    Args:
        out: Folder for this window's checkpoints; the weights are written into it.
        model: The tiny FLUX's file; the committed one by default.
    """
    from accelerate import Accelerator

    plan = TrainConfig(spec.radius, spec.down_factor, steps=steps, batch=batch, rate=rate, warm_up=20, guidance=1.0)
    accelerator = Accelerator(mixed_precision="bf16")
    out.mkdir(parents=True, exist_ok=True)
    check_config(out, plan, accelerator.num_processes, len(samples))
    run = set_up(load_tiny_flux(model), samples, plan, accelerator)
    distil(run, out, save_every=save_every, on_step=on_step)
    path = out / file_name(spec)
    source = (
        f"distilled by clear_core from this project's tiny FLUX: {spec}, {steps} steps of {batch} drawn scenes, "
        f"adamw rate {rate:g}, seed {plan.seed}"
    )
    save_weights(path, accelerator.get_state_dict(run.student), run.inner, spec, source, torch.bfloat16)
    return path
