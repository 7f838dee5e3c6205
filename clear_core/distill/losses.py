"""The loss of the distillation: ``L_fm + 0.5 * L_distill + 0.5 * L_attn`` (paper, equations 4 to 6)."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..integrations.flux_denoiser import flux_call, pack_latent
from .samples import Batch

DISTILL_WEIGHT = 0.5
ATTENTION_WEIGHT = 0.5

SINGLE_BLOCKS = "single_transformer_blocks"
"""Name of a diffusers FLUX's list of single blocks."""


@dataclass(frozen=True)
class Losses:
    """The three terms of one batch, scalars.

    Attributes:
        flow: Mean squared error of the student's flow against ``noise - x``.
        distill: The same against the teacher's flow.
        attention: Mean squared distance of the attention outputs of some single blocks.
    """

    flow: Tensor
    distill: Tensor
    attention: Tensor

    @property
    def total(self) -> Tensor:
        return self.flow + DISTILL_WEIGHT * self.distill + ATTENTION_WEIGHT * self.attention


def taught_blocks(num_single: int) -> list[int]:
    """Indices of the single blocks whose attention is compared: 1, 5, 9 ...; 0 if it is the only one."""
    return list(range(1, num_single, 4)) or list(range(num_single))


class AttentionTap:
    """Keeps the attention outputs of some single blocks while it is open.

    Attributes:
        outputs: (B, L, C) by block index, from the latest call of the model.
    """

    def __init__(self, model: nn.Module, blocks: list[int]) -> None:
        self.outputs: dict[int, Tensor] = {}
        self._attention = {index: model.get_submodule(f"{SINGLE_BLOCKS}.{index}.attn") for index in blocks}

    def __enter__(self) -> AttentionTap:
        def keeper(index: int) -> Any:
            def keep(module: nn.Module, args: Any, output: Tensor) -> None:
                self.outputs[index] = output

            return keep

        self._hooks = [attn.register_forward_hook(keeper(index)) for index, attn in self._attention.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()


def predict(model: nn.Module, batch: Batch, guidance: float | None) -> Tensor:
    """The model's velocity on a noisy batch, as tokens (B, N, 4 C).

    Args:
        guidance: Guidance scale; None for models without the input.
    """
    scales = None if guidance is None else torch.full_like(batch.sigma, guidance)
    return flux_call(model, batch.noisy, batch.sigma, batch.prompt_embeds, batch.pooled, scales)


def distillation_losses(
    student: nn.Module, teacher: nn.Module, batch: Batch, guidance: float | None, inner: nn.Module | None = None
) -> Losses:
    """The three terms on one batch.

    Args:
        student: The model to call; may be wrapped (DDP, FSDP, DeepSpeed).
        teacher: The frozen model.
        inner: The student without its wrapper, if it is wrapped.
    """
    inner = student if inner is None else inner
    blocks = taught_blocks(len(list(inner.get_submodule(SINGLE_BLOCKS).children())))
    with AttentionTap(inner, blocks) as mine, AttentionTap(teacher, blocks) as theirs:
        with torch.no_grad():
            wanted = predict(teacher, batch, guidance).float()
        flow = predict(student, batch, guidance).float()
    target = pack_latent(batch.noise - batch.latents)
    attention = [(mine.outputs[i].float() - theirs.outputs[i].float()).square().mean() for i in blocks]
    return Losses(
        flow=(flow - target).square().mean(),
        distill=(flow - wanted).square().mean(),
        attention=torch.stack(attention).mean() if attention else flow.new_zeros(()),
    )
