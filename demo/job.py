"""The job: a base latent, enlarged and redone at twice the size, with ordinary attention and with CLEAR."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, token_grid
from clear_core.cost import clear_pairs, dense_pairs, gflops
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import noised, sdedit, sdedit_sigmas

from .model import LATENT_CHANNELS

STEPS = 4
STRENGTH = 0.7
LATENT_PIXELS = 8
NOISE_SEED = 42


@dataclass(frozen=True)
class Row:
    """One pass.

    Attributes:
        name: What ran.
        layout: Its sequence.
        gflops: Attention of one layer, counted.
        seconds: One step, measured (the median of its steps).
        oracle_difference: Largest difference from the dense oracle over the largest value, same input; None where
            the oracle itself ran.
        dense_difference: Final latent against ordinary attention's, norm of the difference over norm; None where
            there is nothing to compare.
    """

    name: str
    layout: SequenceLayout
    gflops: float
    seconds: float
    oracle_difference: float | None = None
    dense_difference: float | None = None


def total_steps() -> int:
    """Calls of the model in a whole job, for a progress bar."""
    return STEPS + 2 * (len(sdedit_sigmas(STEPS, STRENGTH)) - 1) + 2


@torch.inference_mode()
def run_job(denoiser: FluxDenoiser, size: int, spec: ClearSpec,
            on_call: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Runs it.

    Args:
        denoiser: The model; it is left as it was found.
        size: Side in px of the high-resolution picture, a multiple of 32.
        spec: The window of the high-resolution pass.
        on_call: Called with the name of the pass after every call of the model.

    Returns:
        Base pass, high-resolution pass with ordinary attention, the same with CLEAR.
    """
    transformer = denoiser.transformer
    base_noise, noise = (make_noise(side // LATENT_PIXELS) for side in (size // 2, size))

    name = f"base {size // 2} px, ordinary attention"
    base, seconds = timed(denoiser, torch.zeros_like(base_noise), base_noise, 1.0, lambda: on_call(name))
    rows = [dense_row(name, denoiser, base_noise, seconds)]

    # Without an image decoder the latent itself is enlarged, not the picture.
    enlarged = F.interpolate(base, scale_factor=2, mode="bilinear")
    name = f"{size} px, ordinary attention"
    # A window past the diagonal is ordinary attention under the same scale and rotary recipe.
    with apply_clear(transformer, ClearSpec(size), backend="dense"):
        dense, seconds = timed(denoiser, enlarged, noise, STRENGTH, lambda: on_call(name))
    rows.append(dense_row(name, denoiser, noise, seconds))

    name = f"{size} px, CLEAR {spec}"
    sigma = float(sdedit_sigmas(STEPS, STRENGTH)[0])
    start = noised(enlarged, noise, sigma)
    answers = {}
    for backend in ("dense", "auto"):
        with apply_clear(transformer, spec, backend=backend):
            answers[backend] = denoiser(start, sigma)
            on_call(name)
    with apply_clear(transformer, spec):
        out, seconds = timed(denoiser, enlarged, noise, STRENGTH, lambda: on_call(name))
    layout = layout_of(denoiser, noise)
    largest = (answers["auto"] - answers["dense"]).abs().max() / answers["dense"].abs().max()
    rows.append(Row(name, layout, gflops(clear_pairs(layout, spec), model_width(denoiser)), seconds, largest.item(),
                    ((out - dense).norm() / dense.norm()).item()))
    return rows


def timed(denoiser: FluxDenoiser, latent: Tensor, noise: Tensor, strength: float,
          on_call: Callable[[], None]) -> tuple[Tensor, float]:
    """An SDEdit pass and the seconds of its median step."""
    ends = [time.perf_counter()]

    def on_step(done: int, steps: int) -> None:
        ends.append(time.perf_counter())
        on_call()

    out = sdedit(denoiser, latent, noise, steps=STEPS, strength=strength, on_step=on_step)
    return out, statistics.median(end - begin for begin, end in zip(ends, ends[1:]))


def make_noise(side: int) -> Tensor:
    return torch.randn(1, LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(NOISE_SEED))


def layout_of(denoiser: FluxDenoiser, latent: Tensor) -> SequenceLayout:
    return SequenceLayout(denoiser.prompt_embeds.shape[1], token_grid(*latent.shape[2:]))


def model_width(denoiser: FluxDenoiser) -> int:
    """Heads times head size."""
    config = denoiser.transformer.config
    return config.num_attention_heads * config.attention_head_dim


def dense_row(name: str, denoiser: FluxDenoiser, latent: Tensor, seconds: float) -> Row:
    layout = layout_of(denoiser, latent)
    return Row(name, layout, gflops(dense_pairs(layout), model_width(denoiser)), seconds)
