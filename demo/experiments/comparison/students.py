"""A small FLUX with an attention of the comparison, and the loss that it is trained by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clear_core.distill.config import TrainConfig
from clear_core.distill.losses import distillation_losses
from clear_core.distill.optimizers import new_optimizer
from clear_core.distill.order import Order
from clear_core.distill.pair import Pair
from clear_core.distill.samples import Batch, SampleFolder

from ...tiny_flux import data
from ...tiny_flux.model import GUIDANCE
from ...tiny_flux.train import own_velocity
from ...training import batch_loss
from ..baselines.attention import Attention
from ..baselines.put_on import put_on
from ..baselines.windows import Windows

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


class DivergedError(ValueError):
    """A loss or a weight is not finite."""


@dataclass(frozen=True)
class Student:
    """A model that attends in a way of the comparison.

    Attributes:
        model: The model, float32.
        trained: The image's projections of the attention layers, and the attention's own weights, by name.
        loss: Of a batch, a scalar.
    """

    model: FluxTransformer2DModel
    trained: dict[str, nn.Parameter]
    loss: Callable[[Batch], Tensor]


def student_of(model: FluxTransformer2DModel, attention: Attention, distilled: bool) -> Student:
    """Puts an attention on a model, which is changed.

    Args:
        distilled: Whether it is taught by the dense model besides: ``L_fm + 0.5 L_distill + 0.5 L_attn``.

    Raises:
        ValueError: An attention other than windows is to be distilled.
    """
    if not distilled:
        return Student(model, put_on(model, attention).trained, lambda batch: flow_loss(model, batch))
    if not isinstance(attention, Windows):
        raise ValueError(f"{attention.name} cannot be distilled; expected CLEAR, with or without pooled keys.")
    pair = Pair(model, attention.spec)
    return Student(model, pair.trained(), lambda batch: distillation_losses(pair, batch, GUIDANCE).total)


def flow_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Flow matching alone."""
    own = data.Batch(batch.latents, batch.noise, batch.sigma, batch.prompt_embeds, batch.pooled)
    return batch_loss(own_velocity, model, own)


def settings(steps: int, batch: int, rate: float, seed: int) -> TrainConfig:
    """Optimiser, schedule and samples of a training, the same for all rows but for the rate."""
    # The window that a configuration names is not read: a student has its own.
    return TrainConfig(
        1, steps=steps, batch=batch, rate=rate, seed=seed, warm_up=steps // 10, schedule="linear", guidance=GUIDANCE
    )


def batches(samples: SampleFolder, config: TrainConfig) -> Callable[[int], Batch]:
    """The batch of a step: of samples, seed and size of a batch alone, as in ``clear_core.distill``."""
    order = Order(samples.shapes, config.batch, config.seed)
    return lambda step: samples.batch(order[step], range(config.batch), config.seed, step)


def train(student: Student, samples: SampleFolder, config: TrainConfig) -> None:
    """Trains a student in bfloat16 products, as models are trained.

    It is the loop of :meth:`clear_core.distill.train.Distillation.run_step` for any loss, on one process.

    Raises:
        DivergedError: A loss or a weight is not finite.
    """
    weights, batch_of = list(student.trained.values()), batches(samples, config)
    optimizer = new_optimizer(config, weights)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate_at(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = student.loss(batch_of(step))
        if not loss.isfinite():
            raise DivergedError(
                f"the loss of step {step + 1} is {loss.item()} at rate {config.full_rate:g}; expected a finite number. "
                "Try a smaller rate."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.step()
        optimizer.zero_grad()
    if not all(weight.isfinite().all() for weight in weights):
        raise DivergedError(
            f"the weights are not finite after {config.steps} steps at rate {config.full_rate:g}; try a smaller rate."
        )
