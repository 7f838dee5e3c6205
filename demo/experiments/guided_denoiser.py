"""Denoisers that correct another one's prediction by a finished picture of low resolution.

A denoiser takes (latent (B, C, h, w), sigma) to a velocity v of the same shape. The correction acts on the denoised
prediction x0 = x - sigma v, as a ComfyUI function after guidance would; the velocity is (x - x0) / sigma again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import token_grid
from clear_core.guidance import Alignment, HiFlowState, align, guided, progress
from clear_core.guidance.imax import Schedule
from clear_core.integrations.flux_denoiser import FluxDenoiser, pack_latent, unpack_latent
from clear_core.integrations.frame import grid_ids
from clear_core.sdedit.sampling import Denoiser

Correction = Callable[[Tensor, Tensor, float], Tensor]
"""(x0, x, sigma) to the corrected x0; all (B, C, h, w)."""


@dataclass(frozen=True)
class Corrected:
    """A denoiser whose prediction x0 is corrected."""

    denoiser: Denoiser
    correct: Correction

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        velocity = self.denoiser(latent, sigma)
        denoised = latent - sigma * velocity
        corrected = self.correct(denoised, latent, sigma)
        # There and back would cost the last bit.
        return velocity if corrected is denoised else (latent - corrected) / sigma


@dataclass(frozen=True)
class TowardsGuide:
    """I-Max's correction (:func:`clear_core.guidance.guided`) over a run of ``sigmas``.

    Attributes:
        guide: (B, C, h, w), the latent of the enlarged picture.
        sigmas: The run's noise levels, falling, the last one 0.
        schedule, level, strength: As in ``guided``.
    """

    guide: Tensor
    sigmas: Sequence[float]
    schedule: Schedule
    level: int = 1
    strength: float = 1.0

    def __call__(self, denoised: Tensor, noisy: Tensor, sigma: float) -> Tensor:
        done = progress(sigma, self.sigmas)
        return guided(denoised, self.guide, done, self.schedule, self.level, self.strength)


@dataclass
class AlongReference:
    """HiFlow's correction (:func:`clear_core.guidance.align`) over a run of ``sigmas``; for one run only.

    Attributes:
        predictions: The low-resolution run's x0 by sigma, each (B, C, h', w').
        sigmas: The run's noise levels, each but the last 0 also one of ``predictions``.
        alignment: Its strengths.
    """

    predictions: dict[float, Tensor]
    sigmas: Sequence[float]
    alignment: Alignment = field(default_factory=Alignment)
    before: HiFlowState | None = None

    def __call__(self, denoised: Tensor, noisy: Tensor, sigma: float) -> Tensor:
        small = self.predictions[sigma]
        reference = F.interpolate(small, size=denoised.shape[-2:], mode="bicubic")
        done = progress(sigma, self.sigmas)
        aligned, self.before = align(denoised, reference, noisy, sigma, done, self.alignment, self.before)
        return aligned


@dataclass
class Recorder:
    """Keeps the prediction of every call, and changes none; a correction for the low-resolution run."""

    predictions: dict[float, Tensor] = field(default_factory=dict)

    def __call__(self, denoised: Tensor, noisy: Tensor, sigma: float) -> Tensor:
        self.predictions[sigma] = denoised.clone()
        return denoised


@dataclass(frozen=True)
class RepeatedText:
    """I-Max's text duplication: the prompt once for each base picture that fits into the large one.

    Attributes:
        denoiser: With a prompt for one picture.
        copies: Of the prompt along each side, k; there are k * k.
        side: Tokens along a side of the base picture; the copy in row i and column j has the ids (0, i side, j side).
    """

    denoiser: FluxDenoiser
    copies: int
    side: int

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        text = self.denoiser.prompt_embeds
        grid = token_grid(*latent.shape[2:])
        places = torch.cartesian_prod(torch.zeros(1), *[self.side * torch.arange(self.copies).float()] * 2)
        batch = latent.shape[0]
        tokens = self.denoiser.transformer(
            hidden_states=pack_latent(latent),
            encoder_hidden_states=text.repeat(1, self.copies**2, 1).expand(batch, -1, -1),
            pooled_projections=self.denoiser.pooled.expand(batch, -1),
            timestep=latent.new_full((batch,), sigma),
            img_ids=grid_ids(grid),
            txt_ids=places.repeat_interleave(text.shape[1], 0),
            guidance=latent.new_full((batch,), self.denoiser.guidance),
            return_dict=False,
        )[0]
        return unpack_latent(tokens, grid)
