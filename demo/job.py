"""The job: a base picture, redrawn at two and four times its size: dense attention, windows, distilled windows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, token_grid
from clear_core.cost import clear_pairs, dense_pairs, gflops
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.sdedit import euler, noised, sdedit, sdedit_sigmas

from .model import build_denoiser, with_distilled_weights
from .tiny_flux.codec import BLOCK, CHANNELS, decode, encode
from .tiny_flux.evaluate import psnr

BASE_STEPS = 20
STEPS = 10
STRENGTH = 0.4
NOISE_SEED = 42
FACTORS = (2, 4)


@dataclass(frozen=True)
class Row:
    """One pass.

    Attributes:
        name: Name of the pass.
        layout: Layout of its sequence.
        gflops: Attention of one layer, counted.
        seconds: One step, measured (the median over the steps).
        picture: (3, H, W), 0 to 1.
        oracle_difference: Largest difference from the dense oracle over the largest value, same input; None if the
            oracle itself ran.
        psnr: The picture compared with that of dense attention, dB; None if there is nothing to compare.
    """

    name: str
    layout: SequenceLayout
    gflops: float
    seconds: float
    picture: Tensor
    oracle_difference: float | None = None
    psnr: float | None = None


def total_calls() -> int:
    """Calls of the model in a whole job, for a progress bar."""
    redone = len(sdedit_sigmas(STEPS, STRENGTH)) - 1
    return BASE_STEPS + len(FACTORS) * (3 * redone + 4)


@torch.inference_mode()
def run_job(
    caption: str, base_size: int, spec: ClearSpec, on_call: Callable[[str], None] = lambda name: None
) -> list[Row]:
    """Runs the job.

    Args:
        caption: Caption in the world's words.
        base_size: Side in px of the base picture, a multiple of 16.
        spec: The window of the high-resolution passes; there must be distilled weights for it.
        on_call: Called with the name of the pass after every call of the model.

    Returns:
        The base, then at each size dense attention, windows, distilled windows. All three start from the same enlarged
        picture, that of dense attention at the previous size.
    """
    plain, distilled = build_denoiser(caption), build_denoiser(caption)
    with_distilled_weights(distilled.transformer, spec)

    name = f"base {base_size} px, dense attention"
    noise = make_noise(base_size)
    seconds: list[float] = []
    latent = euler(plain, noise, sdedit_sigmas(BASE_STEPS, 1.0), watch(seconds, partial(on_call, name)))
    rows = [full_row(name, plain, noise, latent, seconds)]
    previous = rows[0].picture
    for factor in FACTORS:
        size = factor * base_size
        noise = make_noise(size)
        start = encode(F.interpolate(previous[None], size=(size, size), mode="bicubic"))
        name = f"{size} px, dense attention"
        # A window larger than the diagonal is dense attention with the same scale and rotary recipe.
        latent, seconds = redo(plain, ClearSpec(size), "dense", start, noise, partial(on_call, name))
        full = full_row(name, plain, noise, latent, seconds)
        rows.append(full)
        previous = full.picture
        for denoiser, words in ((plain, "as it is"), (distilled, "distilled")):
            name = f"{size} px, {spec}, {words}"
            difference = oracle_difference(denoiser, spec, start, noise, partial(on_call, name))
            latent, seconds = redo(denoiser, spec, "auto", start, noise, partial(on_call, name))
            picture = decoded(latent)
            layout = layout_of(denoiser, noise)
            rows.append(
                Row(
                    name,
                    layout,
                    gflops(clear_pairs(layout, spec), model_width(denoiser)),
                    statistics.median(seconds),
                    picture,
                    difference,
                    psnr(picture, full.picture),
                )
            )
    return rows


def redo(
    denoiser: FluxDenoiser, spec: ClearSpec, backend: str, start: Tensor, noise: Tensor, on_call: Callable[[], None]
) -> tuple[Tensor, list[float]]:
    """An SDEdit pass under a window, and the seconds of its steps."""
    seconds: list[float] = []
    with window(denoiser, spec, backend):
        latent = sdedit(denoiser, start, noise, steps=STEPS, strength=STRENGTH, on_step=watch(seconds, on_call))
    return latent, seconds


def window(denoiser: FluxDenoiser, spec: ClearSpec, backend: str) -> AbstractContextManager[object]:
    return apply_clear(denoiser.transformer, spec, backend=backend)


def oracle_difference(
    denoiser: FluxDenoiser, spec: ClearSpec, start: Tensor, noise: Tensor, on_call: Callable[[], None]
) -> float:
    """Largest difference of the chosen backend from the dense oracle over the largest value, one call."""
    sigma = float(sdedit_sigmas(STEPS, STRENGTH)[0])
    answers: list[Tensor] = []
    for backend in ("dense", "auto"):
        with window(denoiser, spec, backend):
            answers.append(denoiser(noised(start, noise, sigma), sigma))
        on_call()
    return ((answers[1] - answers[0]).abs().max() / answers[0].abs().max()).item()


def watch(seconds: list[float], on_call: Callable[[], None]) -> Callable[[int, int], None]:
    """An ``on_step`` that appends the seconds of each step."""
    last = time.perf_counter()

    def on_step(done: int, steps: int) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        on_call()

    return on_step


def make_noise(side: int) -> Tensor:
    """(1, 16, side / 8, side / 8) for a picture of ``side`` px."""
    return torch.randn(1, CHANNELS, side // BLOCK, side // BLOCK, generator=torch.Generator().manual_seed(NOISE_SEED))


def decoded(latent: Tensor) -> Tensor:
    return decode(latent)[0].clamp(0, 1)


def layout_of(denoiser: FluxDenoiser, latent: Tensor) -> SequenceLayout:
    return SequenceLayout(denoiser.prompt_embeds.shape[1], token_grid(*latent.shape[2:]))


def model_width(denoiser: FluxDenoiser) -> int:
    """Heads times head size."""
    config = denoiser.transformer.config
    return config["num_attention_heads"] * config["attention_head_dim"]


def full_row(name: str, denoiser: FluxDenoiser, noise: Tensor, latent: Tensor, seconds: list[float]) -> Row:
    layout = layout_of(denoiser, noise)
    return Row(
        name, layout, gflops(dense_pairs(layout), model_width(denoiser)), statistics.median(seconds), decoded(latent)
    )
