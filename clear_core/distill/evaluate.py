"""Distance of a student's flow from its teacher's, on samples held out of the training."""

from __future__ import annotations

import torch
from torch import nn

from ..number_checks import check_number
from .losses import predict
from .samples import SampleFolder

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
SEED = 20_412


@torch.no_grad()
def velocity_errors(
    student: nn.Module,
    teacher: nn.Module,
    samples: SampleFolder,
    *,
    guidance: float | None,
    levels: tuple[float, ...] = LEVELS,
    device: torch.device | None = None,
) -> dict[float, float]:
    """Mean squared distance of the flows by noise level, over all samples, with the same noise in every call.

    Args:
        samples: Held-out samples; batches of one.
        guidance: As in :func:`predict`.

    Raises:
        ValueError: The samples are for another model, or the guidance is not finite.
    """
    samples.check_fits(teacher.config)  # pyright: ignore[reportArgumentType]  a mapping; nn.Module does not know it
    if guidance is not None:
        check_number("guidance", guidance)
    sums = dict.fromkeys(levels, 0.0)
    for index in range(len(samples)):
        batch = samples.batch([index], [index], SEED, 0).to(device or torch.device("cpu"))
        for level in levels:
            batch.sigma.fill_(level)
            distance = predict(student, batch, guidance).float() - predict(teacher, batch, guidance).float()
            sums[level] += distance.square().mean().item() / len(samples)
    return sums


def mean_error(errors: dict[float, float]) -> float:
    return sum(errors.values()) / len(errors)
