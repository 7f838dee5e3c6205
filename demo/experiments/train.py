"""Distils windows for the tiny FLUX, through the same code that does it for any FLUX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clear_core import ClearSpec
from clear_core.distill.checkpoint import weights_of
from clear_core.distill.config import TrainConfig, check_config
from clear_core.distill.outputs import file_name, save_weights
from clear_core.distill.samples import SampleFolder, sample_path, write_sample
from clear_core.distill.set_up import set_up
from clear_core.distill.train import distil

from ..tiny_flux.caption import encode_captions
from ..tiny_flux.data import HELD_OUT, draw_latents
from ..tiny_flux.weights import load_tiny_flux, model_fingerprint
from ..world import Scene, random_scene

# Grids of 32 x 32 and 24 x 24 tokens: larger than most windows.
SIZES = ((512, 512), (512, 512), (384, 384))
# Seed of the scenes, different from those of the model's training and of every evaluation.
SEED = HELD_OUT + 1


def training_scene(index: int) -> Scene:
    """Scene of one sample."""
    return random_scene(np.random.default_rng((SEED, index)))


def make_samples(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = SIZES) -> SampleFolder:
    """Drawn scenes as samples, of ``sizes`` = (height, width) px in turn; those already in the folder are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        if not sample_path(folder, index).exists():
            scene = training_scene(index)
            context, pooled = encode_captions([scene.caption])
            write_sample(folder, index, draw_latents([scene], sizes[index % len(sizes)])[0], context[0], pooled[0])
    return SampleFolder(folder, end=count)


def train_config(spec: ClearSpec, steps: int, *, rate: float = 3e-4, batch: int = 4) -> TrainConfig:
    """The experiments' settings for one window."""
    return TrainConfig(spec.radius, spec.down_factor, steps=steps, batch=batch, rate=rate, warm_up=20, guidance=1.0)


def distil_window(
    config: TrainConfig,
    samples: SampleFolder,
    out: Path,
    *,
    save_every: int = 50,
    model: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Distils one window and returns the path of its weights; resumes after a stop.

    Args:
        out: Folder for this window's checkpoints; the weights are written into it.
        model: The tiny FLUX's file; the committed one by default.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    out.mkdir(parents=True, exist_ok=True)
    check_config(out, config, accelerator.num_processes, {"model": model_fingerprint(model), **samples.fingerprint()})
    transformer: Any = load_tiny_flux(model)
    # In 16 bits, as a FLUX is trained.
    run = set_up(transformer.to(torch.bfloat16), samples, config, accelerator)
    distil(run, out, save_every=save_every, on_step=on_step)
    spec = config.spec
    path = out / file_name(spec)
    source = (
        f"distilled by clear_core from this project's tiny FLUX: {spec}, {config.steps} steps of "
        f"{config.batch} drawn scenes, adamw rate {config.rate:g}, seed {config.seed}"
    )
    save_weights(path, run.pair, weights_of(run.pair.trained()), source)
    return path
