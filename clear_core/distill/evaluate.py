"""Distance of a student's flow from its teacher's, on samples held out of the training."""

from __future__ import annotations

import torch

from ..number_checks import check_number
from .losses import predict
from .pair import Pair
from .samples import SampleFolder

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
SEED = 20_412


@torch.no_grad()
def velocity_errors(
    pair: Pair,
    samples: SampleFolder,
    *,
    guidance: float,
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
    check_number("guidance", guidance)
    samples.check_fits(pair.teaching.needs(pair.transformer.config, guidance), pair.teaching.even)
    sums = dict.fromkeys(levels, 0.0)
    for index in range(len(samples)):
        batch = samples.batch([index], [index], SEED, 0).to(device or torch.device("cpu"))
        for level in levels:
            batch.sigma.fill_(level)
            with pair.teacher() as dense:
                wanted = predict(dense, pair, batch, guidance).guided
            distance = predict(pair.transformer, pair, batch, guidance).guided - wanted
            sums[level] += distance.square().mean().item() / len(samples)
    return sums


def mean_error(errors: dict[float, float]) -> float:
    return sum(errors.values()) / len(errors)
