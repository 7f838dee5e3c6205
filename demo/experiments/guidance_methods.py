"""The ways to a large picture that the guidance laboratory compares, and how one picture is made by each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core.guidance.imax import Schedule
from clear_core.integrations.flux_denoiser import FluxDenoiser
from clear_core.layout import TOKEN_PIXELS
from clear_core.sdedit import euler, noised, sdedit_sigmas
from clear_core.sdedit.sampling import Denoiser

from ..tiny_flux.codec import decode, encode
from .guided_denoiser import AlongReference, Corrected, Recorder, RepeatedText, TowardsGuide

STEPS = 20
BASE_SIDE = 256

Attention = Literal["dense", "plain", "distilled"]
"""Dense attention; windows on the weights as they are; windows with distilled weights."""


@dataclass(frozen=True)
class Method:
    """One way to a large picture from a small one.

    Attributes:
        strength: Share of the schedule that is run; 1 starts from noise, less is SDEdit of the enlarged picture.
        schedule: Of I-Max's guidance; None leaves it out.
        level: Of its wavelet transform.
        shift: Static shift of the noise levels.
        hiflow: Whether the run is aligned with the base run's predictions.
        repeated: Whether the prompt is repeated for each base picture that fits into the large one.
    """

    strength: float = 1.0
    schedule: Schedule | None = None
    level: int = 1
    shift: float = 3.0
    hiflow: bool = False
    repeated: bool = False

    @property
    def name(self) -> str:
        """A row's name: what it starts from, then what guides it."""
        parts = ["from noise" if self.strength == 1 else f"SDEdit {self.strength:g}"]
        if self.schedule is not None:
            parts.append(f"{self.schedule}, level {self.level}")
        if self.hiflow:
            parts.append("HiFlow")
        if self.repeated:
            parts.append("text repeated")
        if self.shift != 3:
            parts.append(f"noise levels shifted by {self.shift:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Start:
    """The finished picture that a larger one is made from.

    Attributes:
        latent: (1, 16, h, w).
        predictions: Its run's x0 by sigma; empty where no method asks for them.
    """

    latent: Tensor
    predictions: dict[float, Tensor]

    def enlarged(self, side: int) -> Tensor:
        """(1, 16, side / 8, side / 8): the picture in pixels, made ``side`` px large, as a latent."""
        return encode(enlarge(decode(self.latent).clamp(0, 1), side))


GUIDED = (
    Method(),
    *(Method(schedule=schedule, level=level) for schedule in ("decay", "shift", "constant") for level in (1, 2)),
    Method(0.5),
    Method(0.5, "decay"),
    Method(0.5, "shift"),
    Method(0.7),
    Method(0.7, "decay"),
    Method(0.7, "shift"),
    Method(0.5, hiflow=True),
)
MAIN = (*GUIDED, Method(0.5, "constant", 2), Method(0.7, "constant", 2))
"""With distilled windows, on every scene."""

REPEATED = Method(repeated=True)
COMPARED: dict[Attention, tuple[Method, ...]] = {
    "distilled": (*MAIN, REPEATED, *(Method(schedule=schedule, shift=6) for schedule in (None, "decay", "shift"))),
    "dense": (*GUIDED, REPEATED),
    "plain": (
        Method(),
        Method(schedule="decay"),
        Method(schedule="shift"),
        Method(schedule="constant"),
        Method(0.5),
        Method(0.7),
        Method(0.7, "decay"),
        Method(0.5, hiflow=True),
    ),
}
"""On the first scenes: the three attentions side by side, and what is only tried there."""

ABOVE = (
    Method(0.5),
    Method(0.5, "decay"),
    Method(0.5, "shift"),
    Method(0.5, "constant"),
    Method(0.7, "decay"),
    Method(schedule="decay"),
    Method(schedule="shift"),
)
"""From a picture of four times the base's side to one of eight times."""


def make_base(denoiser: Denoiser, noise: Tensor) -> Start:
    """The base picture, from noise, with its predictions."""
    recorder = Recorder()
    latent = euler(Corrected(denoiser, recorder), noise, sdedit_sigmas(STEPS, 1.0))
    return Start(latent, recorder.predictions)


def make_large(denoiser: FluxDenoiser, method: Method, start: Start, noise: Tensor) -> Tensor:
    """(1, 16, h, w) latent of a picture in the size of ``noise``; the caller applies the window."""
    sigmas = sdedit_sigmas(STEPS, method.strength, method.shift)
    guide = start.enlarged(8 * noise.shape[-1])
    # From noise, the first sigma is 1 and nothing of the guide is left in it.
    noisy = noised(guide, noise, float(sigmas[0]))
    return euler(prepared(denoiser, method, start, guide, sigmas.tolist()), noisy, sigmas)


def prepared(denoiser: FluxDenoiser, method: Method, start: Start, guide: Tensor, sigmas: list[float]) -> Denoiser:
    """The denoiser of a method."""
    small = start.latent.shape[-1]
    asked: Denoiser = denoiser
    if method.repeated:
        asked = RepeatedText(denoiser, guide.shape[-1] // small, small * 8 // TOKEN_PIXELS)
    if method.hiflow:
        asked = Corrected(asked, AlongReference(start.predictions, sigmas))
    if method.schedule is not None:
        asked = Corrected(asked, TowardsGuide(guide, sigmas, method.schedule, method.level))
    return asked


def enlarge(picture: Tensor, side: int) -> Tensor:
    """(B, 3, side, side) by bicubic interpolation, within 0 to 1."""
    return F.interpolate(picture, size=(side, side), mode="bicubic").clamp(0, 1)


def scene_noise(index: int, side: int) -> Tensor:
    """(1, 16, side / 8, side / 8): the noise of a scene at a size, the same for all methods."""
    generator = torch.Generator().manual_seed(1000 * side + index)
    return torch.randn(1, 16, side // 8, side // 8, generator=generator)
