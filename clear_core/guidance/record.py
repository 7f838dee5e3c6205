"""The predictions of finished runs, kept for the alignment of a later run of higher resolution (HiFlow)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 2**30
"""Bytes of main memory that one record holds: 30 steps of 1024 x 1024 px with 16 latent channels take 2**25."""

SAME = 0.02
"""Largest mean difference from a result, over its mean size, with which a latent still counts as that result. Rounding
to half precision stays far below."""

SLACK = 0.001
"""Share by which the noise levels of two runs may differ at their ends: samplers of stochastic equations begin a little
below pure noise (``offset_first_sigma_for_snr`` in the host)."""

STRETCH = 1.03
"""Most by which width and height may differ in their factor: sides are rounded to whole latent cells."""


@dataclass(frozen=True)
class RecordedRun:
    """One finished run.

    Attributes:
        predictions: By sigma the prediction x0 as the model sees latents, (B, ..., h, w), on the CPU. One at sigma 0 is
            the result itself; a run that ended earlier has none.
        result: What the sampler returned, as the host passes latents on.
    """

    predictions: Mapping[float, Tensor]
    result: Tensor

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Rising."""
        return tuple(sorted(self.predictions))

    @property
    def size(self) -> int:
        """Bytes of the predictions and the result."""
        return sum(one.nbytes for one in (*self.predictions.values(), self.result))

    def at(self, sigma: float) -> Tensor:
        """The prediction at a sigma; between two recorded ones, in proportion; beyond them, the nearest."""
        sigmas = self.sigmas
        place = bisect_left(sigmas, sigma)
        if place == len(sigmas):
            return self.predictions[sigmas[-1]]
        if sigmas[place] == sigma or place == 0:
            return self.predictions[sigmas[place]]
        below, above = sigmas[place - 1], sigmas[place]
        return torch.lerp(self.predictions[below], self.predictions[above], (sigma - below) / (above - below))

    def check_sigmas(self, highest: float, lowest: float) -> None:
        """Refuse a run that asks for sigmas which this one never had.

        Args:
            highest, lowest: Of the other run; the lowest without the final 0.

        Raises:
            ValueError: They lie outside the recorded ones.
        """
        least, most = self.sigmas[0], self.sigmas[-1]
        if highest > most * (1 + SLACK) or lowest < least * (1 - SLACK):
            raise ValueError(
                f"this run goes from sigma {highest:.4g} to {lowest:.4g}, but the recorded one from {most:.4g} to "
                f"{least:.4g}; record a run from its first to its last step, or lower denoise in this one."
            )


@dataclass
class PredictionRecord:
    """The runs of one recorder, the newest last.

    Attributes:
        limit: Bytes that all runs together may hold; the oldest are dropped for a new one.
    """

    limit: int = LIMIT
    runs: list[RecordedRun] = field(default_factory=list[RecordedRun])

    def make_room(self, size: int, words: str) -> None:
        """Drop the oldest runs until one of ``size`` bytes fits.

        Args:
            words: What is to be recorded, for the message.

        Raises:
            ValueError: It is larger than the limit by itself.
        """
        if size > self.limit:
            raise ValueError(
                f"{words} take {size / 2**20:.0f} MiB of memory, expected {self.limit / 2**20:.0f} at most; record a "
                "smaller picture, fewer pictures at once or fewer steps, and take the model of the large run from "
                "before the recorder."
            )
        while sum(run.size for run in self.runs) + size > self.limit:
            del self.runs[0]

    def find(self, result: Tensor) -> RecordedRun:
        """The run that gave a result: of those that are near enough the nearest, and of equal ones the newest.

        Raises:
            ValueError: No kept run did.
        """
        wanted = result.detach().float().cpu()
        most, found = SAME * float(wanted.abs().mean()), None
        for run in self.runs:  # The newest is last.
            if run.result.shape == wanted.shape:
                difference = float((run.result - wanted).abs().mean())
                if difference <= most:
                    most, found = difference, run
        if found is not None:
            return found
        raise ValueError(
            f"latent is not the result of a run that is kept on the record ({len(self.runs)} of them); connect the "
            "output of the sampler that gets the recorder's model, and if it is connected, change its seed or its "
            "steps so that it runs again."
        )


def brought_to_size(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """A prediction at another size, by bicubic interpolation of the latent as published (``upsampling_choice``).

    Args:
        latent: (..., h, w), floating-point.
        size: (height, width) in latent cells, of the same proportions.

    Returns:
        (..., height, width).

    Raises:
        ValueError: The proportions differ by more than rounding to whole cells explains.
    """
    height, width = latent.shape[-2:]
    if (height, width) == size:
        return latent
    tall, wide = size[0] / height, size[1] / width
    if max(tall, wide) > STRETCH * min(tall, wide):
        raise ValueError(
            f"the recorded picture has {width} x {height} latent cells and this one {size[1]} x {size[0]}; expected "
            "the same proportions of width and height."
        )
    planes = latent.reshape(1, -1, height, width)
    return F.interpolate(planes, size, mode="bicubic", align_corners=False).reshape(*latent.shape[:-2], *size)
