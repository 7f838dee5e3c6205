"""The attention processor that puts CLEAR into one block of a diffusers FLUX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..effective import Effective
from .diffusers_parallel import Part, attend_whole


@dataclass(frozen=True, eq=False)
class ClearCall:
    """Facts of one call of the model, passed to its blocks in ``joint_attention_kwargs``.

    They are part of the call and stored nowhere else, so every size, thread and recomputation under gradient
    checkpointing gets its own.

    Attributes:
        effective: What the settings come to for this call.
        rotary: (cos, sin) of this process's tokens, each (L, D), under the NTK factor; None keeps the model's own.
        part: What this process holds of the call; None if that is all.
    """

    effective: Effective
    rotary: tuple[Tensor, Tensor] | None
    part: Part | None = None

    @property
    def text(self) -> int:
        """Text tokens of this process."""
        return self.effective.layout.text if self.part is None else self.part.text

    def attend(self, weight: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of this process's tokens, (B, heads, L, D) each, to all, with a block's pooling weights."""
        if self.part is None:
            return attend_whole(self.effective, weight, q, k, v)
        return self.part.attend(self.effective, weight, q, k, v)


class ClearAttnProcessor(nn.Module):
    """Attention of one double or single block.

    A module, so that ``spatial_weight`` moves, trains and is stored with the model under the published name,
    ``<block>.attn.processor.spatial_weight``.

    Args:
        spatial_weight: (1, 1, 1, d, 1, d, 1) of this block; None if the spec does not pool.
    """

    def __init__(self, spatial_weight: Tensor | None = None) -> None:
        super().__init__()
        self.spatial_weight = None if spatial_weight is None else nn.Parameter(spatial_weight)

    # diffusers reads the signature of __call__, not of forward, and passes on the keywords that it finds there.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        clear_call: ClearCall | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block's attention.

        Args:
            attn: diffusers' ``FluxAttention`` (``Attention`` before 0.35): projections and norms.
            hidden_states: (B, N, C) image stream of a double block, (B, L, C) of a single block.
            encoder_hidden_states: (B, T, C) text stream of a double block.
            attention_mask: Not supported: the window is the mask.
            image_rotary_emb: (cos, sin) of the model's own theta.
            clear_call: From the hook of :func:`clear_core.integrations.diffusers.apply_clear`.

        Returns:
            (B, L, C), or image and text (B, N, C), (B, T, C) of a double block. With context parallelism L, N and T
            are this process's own tokens.
        """
        if clear_call is None:
            raise ValueError(
                "a block with CLEAR was called without its grid: call the whole transformer, and with "
                "gradient checkpointing use diffusers 0.35 or later (older ones do not hand "
                "joint_attention_kwargs to checkpointed blocks)."
            )
        if attention_mask is not None:
            raise ValueError(
                "an attention_mask was given, which CLEAR does not take; leave it out of "
                "joint_attention_kwargs or take CLEAR off."
            )
        from diffusers.models.embeddings import apply_rotary_emb

        query, key, value = project(attn, hidden_states, ("to_q", "to_k", "to_v"), "to_qkv")
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text_query, text_key, text_value = project(
                attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), "to_added_qkv"
            )
            query = torch.cat([attn.norm_added_q(text_query), query], dim=2)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=2)
            value = torch.cat([text_value, value], dim=2)
        rotary: Any = clear_call.rotary or image_rotary_emb
        if rotary is not None:
            # A pair is what it gives to models of another kind.
            query, key = cast(Tensor, apply_rotary_emb(query, rotary)), cast(Tensor, apply_rotary_emb(key, rotary))

        out = clear_call.attend(self.spatial_weight, query, key, value)
        out = out.transpose(1, 2).flatten(2)

        if encoder_hidden_states is None:
            return out
        text, image = out[:, : clear_call.text], out[:, clear_call.text :]
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


def project(attn: Any, states: Tensor, names: tuple[str, str, str], fused: str) -> list[Tensor]:
    """Query, key and value of one stream, (B, heads, tokens, D) each; with tensor parallelism this process's heads.

    Args:
        names: Names of the three projections.
        fused: Name of the one that replaces them after ``fuse_qkv_projections()``.
    """
    if getattr(attn, "fused_projections", False):
        parts = getattr(attn, fused)(states).chunk(3, dim=-1)
    else:
        parts = [getattr(attn, name)(states) for name in names]
    # Of the whole model: with tensor parallelism the projections give a share of the heads, and heads stays.
    head_dim = attn.inner_dim // attn.heads
    return [part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts]
