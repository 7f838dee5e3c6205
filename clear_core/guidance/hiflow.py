"""HiFlow's alignment with the predictions of a low-resolution run (arXiv 2504.06232, ``flux_pipeline_hiflow.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..number_checks import check_number
from .lowpass import butterworth


@dataclass(frozen=True)
class Alignment:
    """How strong the alignments are at the first step; they fall to 0 over the run.

    Attributes:
        direction: Of the low frequencies with the reference's prediction; published 1.0 at 2K, 0.25 at 4K.
        acceleration: Of the change of the velocity with the reference's; published 0.5.
        order: Of the low-pass filter; the larger, the sharper.
        cutoff: Of the low-pass filter, above 0 and up to 2, in halves of the sampling rate.

    Raises:
        ValueError: A value is out of range.
    """

    direction: float = 1.0
    acceleration: float = 0.5
    order: int = 4
    cutoff: float = 0.2

    def __post_init__(self) -> None:
        for name in ("direction", "acceleration"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("order", self.order, 1, whole=True)
        check_number("cutoff", self.cutoff, 0, 2, above=True)


@dataclass(frozen=True)
class HiFlowState:
    """What a step leaves for the next.

    Attributes:
        velocity, reference_velocity: Of the picture, aligned, and of the reference at that step; (..., h, w).
    """

    velocity: Tensor
    reference_velocity: Tensor


def align(
    denoised: Tensor,
    reference: Tensor,
    noisy: Tensor,
    sigma: float,
    done: float,
    alignment: Alignment,
    before: HiFlowState | None,
) -> tuple[Tensor, HiFlowState]:
    """One step: first the direction, then the acceleration.

    Args:
        denoised: (..., h, w), the prediction x0.
        reference: The same shape: the low-resolution run's prediction at this sigma, brought to size.
        noisy: What the model was given, x = sigma * noise + (1 - sigma) * x0.
        sigma: Above 0: up to 1 for flow models, up to about 15 for others.
        done: Share of the run that is done, 0 to 1.
        before: Of the step before; None at the first, which has no acceleration to align.

    Returns:
        The aligned prediction, and what the next step needs.
    """
    left = 1 - done
    low = butterworth(reference - denoised, alignment.order, alignment.cutoff)
    aligned = denoised + alignment.direction * left * low
    velocity, reference_velocity = (noisy - aligned) / sigma, (noisy - reference) / sigma
    if before is not None:
        expected = before.velocity + reference_velocity - before.reference_velocity
        velocity = velocity + alignment.acceleration * left * (expected - velocity)
        aligned = noisy - sigma * velocity
    return aligned, HiFlowState(velocity, reference_velocity)
