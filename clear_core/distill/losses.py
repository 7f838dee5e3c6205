"""What the student is taught: ``L_fm + 0.5 * L_distill + 0.5 * L_attn`` (paper, equations 4 to 6)."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..integrations.flux_denoiser import pack_latent
from ..integrations.frame import grid_ids
from .samples import Batch

DISTILL_WEIGHT = 0.5
ATTENTION_WEIGHT = 0.5


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
    """Single blocks whose attention is compared: 1, 5, 9 ... (every fourth of FLUX's 57); the only one of one."""
    return list(range(1, num_single, 4)) or list(range(num_single))


class AttentionTap:
    """While it is open, keeps what the attention of some single blocks puts out.

    Attributes:
        outputs: (B, L, C) by block index, of the model's latest call.
    """

    def __init__(self, model: nn.Module, blocks: list[int]) -> None:
        self.outputs: dict[int, Tensor] = {}
        self._attention = {index: model.single_transformer_blocks[index].attn for index in blocks}

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
    """The model's flow on a noisy batch, as tokens (B, N, 4 C).

    Args:
        guidance: Guidance scale; None for models without the input.
    """
    height, width = batch.latents.shape[2:]
    device = batch.latents.device
    return model(
        hidden_states=pack_latent(batch.noisy),
        timestep=batch.sigma,
        guidance=None if guidance is None else torch.full_like(batch.sigma, guidance),
        encoder_hidden_states=batch.prompt_embeds,
        pooled_projections=batch.pooled,
        img_ids=grid_ids((height // 2, width // 2)).to(device),
        txt_ids=torch.zeros(batch.prompt_embeds.shape[1], 3, device=device),
        return_dict=False,
    )[0]


def distillation_losses(
    student: nn.Module, teacher: nn.Module, batch: Batch, guidance: float | None, inner: nn.Module | None = None
) -> Losses:
    """The three terms on one batch.

    Args:
        student: Called; may be wrapped (DDP, FSDP, DeepSpeed).
        teacher: Frozen.
        inner: The student without wrappers, where it is wrapped.
    """
    inner = student if inner is None else inner
    blocks = taught_blocks(len(inner.single_transformer_blocks))
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
