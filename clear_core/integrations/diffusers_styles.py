"""Attention processors with CLEAR for diffusers models that project or turn their tokens in other ways than FLUX.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .diffusers_processor import (
    ClearAttnProcessor,
    ClearCall,
    by_heads,
    checked,
    image_and_text,
    image_projections,
    joint_projections,
    normed,
    turned,
)


class Flux2SingleProcessor(ClearAttnProcessor):
    """Attention of one single block of FLUX.2, whose projections are fused with those of the MLP."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers calls each kind in its own way
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        clear_call: ClearCall | None = None,
    ) -> Tensor:
        """(B, L, C) to the same, MLP included; ``attn`` is a ``Flux2ParallelSelfAttention``."""
        call = checked(clear_call, attention_mask)
        states = attn.to_qkv_mlp_proj(hidden_states)
        # By their ratio, since tensor parallelism leaves this process a share of each.
        qkv_width, mlp_width = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        own = states.shape[-1] * qkv_width // (qkv_width + mlp_width)
        query, key, value = (by_heads(attn, part) for part in states[..., :own].chunk(3, dim=-1))
        query, key = turned(call, normed(attn.norm_q, query), normed(attn.norm_k, key), image_rotary_emb)
        out = call.attend(self.pooling_weight(), query, key, value)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(states[..., own:])], dim=-1))


class QwenProcessor(ClearAttnProcessor):
    """Attention of one block of Qwen-Image, whose rotary embedding is of complex numbers, one tensor a stream."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - as above
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        clear_call: ClearCall | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B, N, C) and text (B, T, C) to the same.

        Args:
            attn: diffusers' ``Attention``.
            encoder_hidden_states_mask: None: the hook takes it out of the call.
            image_rotary_emb: (N, D/2) and (T, D/2) complex, image and text.
        """
        call = checked(clear_call, attention_mask)
        query, key, value = joint_projections(attn, hidden_states, call.mask.cut(encoder_hidden_states))
        rotary = call.rotary or image_rotary_emb
        if rotary is not None:
            image, text = rotary
            turns = torch.cat([call.mask.cut(text, 0), image])
            query, key = turned_pairs(query, turns), turned_pairs(key, turns)
        return image_and_text(attn, call, call.attend(self.pooling_weight(), query, key, value))


class JointProcessor(ClearAttnProcessor):
    """Attention of one block of SD3, or the second one of SD3.5 Medium, of the image alone.

    diffusers puts the image before the text. Attention does not depend on the order, so that the text comes first here.
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - as above
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        clear_call: ClearCall | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image (B, N, C) and text (B, T, C), if any, to the same; ``attn`` is diffusers' ``Attention``."""
        call = checked(clear_call, attention_mask)
        if encoder_hidden_states is None:
            out = call.attend(self.pooling_weight(), *image_projections(attn, hidden_states))
            return attn.to_out[1](attn.to_out[0](out))
        projections = joint_projections(attn, hidden_states, encoder_hidden_states)
        return image_and_text(attn, call, call.attend(self.pooling_weight(), *projections))


_STYLES: dict[str, type[ClearAttnProcessor]] = {
    "Flux2ParallelSelfAttnProcessor": Flux2SingleProcessor,
    "QwenDoubleStreamAttnProcessor2_0": QwenProcessor,
    "JointAttnProcessor2_0": JointProcessor,
    "FusedJointAttnProcessor2_0": JointProcessor,
}


def processor_like(stock: object, spatial_weight: Tensor | None) -> ClearAttnProcessor:
    """The processor with CLEAR that does the rest as ``stock``, one of those that the table of families names."""
    return _STYLES.get(type(stock).__name__, ClearAttnProcessor)(spatial_weight)


def turned_pairs(states: Tensor, turns: Tensor) -> Tensor:
    """(..., L, D) turned by (..., L, D/2) complex numbers, in float32 as diffusers does it; shapes are broadcast."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(states)
