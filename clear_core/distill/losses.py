"""The loss of the distillation: ``L_fm + 0.5 * L_distill + 0.5 * L_attn`` (paper, equations 4 to 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .families import Text
from .pair import Pair
from .samples import Batch
from .taught import AttentionTap

DISTILL_WEIGHT = 0.5
ATTENTION_WEIGHT = 0.5


@dataclass(frozen=True)
class Losses:
    """The three terms of one batch, scalars.

    Attributes:
        flow: Mean squared error of the student's flow against ``noise - x``.
        distill: The same against the teacher's flow.
        attention: Mean squared distance of the attention outputs of some blocks.
    """

    flow: Tensor
    distill: Tensor
    attention: Tensor

    @property
    def total(self) -> Tensor:
        return self.flow + DISTILL_WEIGHT * self.distill + ATTENTION_WEIGHT * self.attention


@dataclass(frozen=True)
class Flow:
    """The flow of a model on a noisy batch.

    Attributes:
        plain: (B, C, H, W) with the batch's text.
        guided: The same with real guidance (cfg); ``plain`` itself without.
    """

    plain: Tensor
    guided: Tensor


def texts_of(pair: Pair, batch: Batch, guidance: float) -> list[Text]:
    """The texts that the model is called with: the batch's own, and for guidance by two calls the empty one."""
    texts = [Text(batch.prompt_embeds, batch.pooled, batch.text_mask)]
    if pair.teaching.takes_two_calls(guidance):
        texts.append(Text(batch.text["negative_embeds"], batch.text.get("negative_pooled")))
    return texts


def predict(model: Any, pair: Pair, batch: Batch, guidance: float) -> Flow:
    """The model's flow on a noisy batch, float32.

    Args:
        model: The transformer, or a wrapper of it (DDP, FSDP, DeepSpeed).
        guidance: Guidance scale: of the model's own input, of two calls, or not used, as the family has it.
    """
    scale = pair.teaching.input_guidance(pair.transformer.config, guidance)
    flows = [
        pair.teaching.call(model, batch.noisy, batch.sigma, text, scale).float()
        for text in texts_of(pair, batch, guidance)
    ]
    plain = flows[0]
    return Flow(plain, plain if len(flows) == 1 else flows[1] + guidance * (plain - flows[1]))


def distillation_losses(pair: Pair, batch: Batch, guidance: float, model: Any = None) -> Losses:
    """The three terms on one batch.

    Real guidance is applied to teacher and student alike, and the second term compares what comes out; the first one
    is of the student's flow with text, as in every training by flow matching.

    Args:
        guidance: As in :func:`predict`.
        model: What to call as the student: the transformer, or a wrapper of it (DDP, DeepSpeed, a compiled model).
    """
    student = pair.transformer if model is None else model
    with AttentionTap(pair.transformer, pair.shape) as theirs, torch.no_grad(), pair.teacher() as dense:
        wanted = predict(dense, pair, batch, guidance).guided
    with AttentionTap(pair.transformer, pair.shape) as mine:
        flow = predict(student, pair, batch, guidance)
    attention = [
        (my.float() - their.float()).square().mean() for my, their in zip(mine.outputs, theirs.outputs, strict=True)
    ]
    return Losses(
        flow=(flow.plain - (batch.noise - batch.latents)).square().mean(),
        distill=(flow.guided - wanted).square().mean(),
        attention=torch.stack(attention).mean(),
    )
