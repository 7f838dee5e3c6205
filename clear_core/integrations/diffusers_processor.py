"""The attention processor that puts CLEAR into one block of a diffusers FLUX; base of those of other models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..attention import AttentionBias
from ..effective import Effective
from .diffusers_parallel import Part, attend_whole
from .diffusers_text import TextMask


@dataclass(frozen=True, eq=False)
class ClearCall:
    """Facts of one call of the model, passed to its blocks in ``joint_attention_kwargs`` (``attention_kwargs``).

    They are part of the call and stored nowhere else, so every size, thread and recomputation under gradient
    checkpointing gets its own.

    Attributes:
        effective: What the settings come to for this call, without hidden text tokens.
        rotary: What the model's embedder would give for this process's tokens under the NTK factor; None keeps the
            model's own.
        mask: What the call's text mask comes to.
        bias: The mask between the tokens that take part; None if they all see each other.
        part: What this process holds of the call; None if that is all.
    """

    effective: Effective
    rotary: tuple[Tensor, Tensor] | None
    mask: TextMask
    bias: AttentionBias | None = None
    part: Part | None = None

    @property
    def text(self) -> int:
        """Text tokens of this process that take part."""
        return self.effective.layout.text if self.part is None else self.part.text

    def attend(self, weight: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of this process's tokens, (B, heads, L, D) each, to all, with a block's pooling weights.

        Returns:
            (B, L, heads * D).
        """
        if self.part is None:
            out = attend_whole(self.effective, weight, q, k, v, self.bias)
        else:
            out = self.part.attend(self.effective, weight, q, k, v)
        return out.transpose(1, 2).flatten(2)


class ClearAttnProcessor(nn.Module):
    """Attention of one block of FLUX.1 or Chroma, or of one double block of FLUX.2.

    A module, so that ``spatial_weight`` moves, trains and is stored with the model under the published name,
    ``<block>.attn.processor.spatial_weight``.

    Args:
        spatial_weight: (1, 1, 1, d, 1, d, 1) of this block; None if the spec does not pool.
    """

    def __init__(self, spatial_weight: Tensor | None = None) -> None:
        super().__init__()
        self.spatial_weight = None if spatial_weight is None else nn.Parameter(spatial_weight)

    def forward(self) -> Tensor | None:
        """The block's pooling weight."""
        return self.spatial_weight

    def pooling_weight(self) -> Tensor | None:
        """The block's pooling weight, where it is at hand: offloading fetches it by a hook around ``forward``."""
        return None if self.spatial_weight is None else super().__call__()

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
            attn: diffusers' ``FluxAttention`` (``Attention`` before 0.35) or ``Flux2Attention``: projections and norms.
            hidden_states: (B, N, C) image stream of a double block, (B, L, C) of a single block.
            encoder_hidden_states: (B, T, C) text stream of a double block.
            attention_mask: Not supported: the window is the mask, and the hook takes text masks out of the call.
            image_rotary_emb: (cos, sin) of the model's own theta.
            clear_call: From the hook of :func:`clear_core.integrations.diffusers.apply_clear`.

        Returns:
            (B, L, C), or image and text (B, N, C), (B, T, C) of a double block. With context parallelism L, N and T
            are this process's own tokens.
        """
        call = checked(clear_call, attention_mask)
        if encoder_hidden_states is None:
            query, key, value = image_projections(attn, call.mask.cut(hidden_states))
        else:
            query, key, value = joint_projections(attn, hidden_states, call.mask.cut(encoder_hidden_states))
        query, key = turned(call, query, key, image_rotary_emb)
        out = call.attend(self.pooling_weight(), query, key, value)
        if encoder_hidden_states is None:
            return call.mask.restore(out)
        return image_and_text(attn, call, out)


def checked(call: ClearCall | None, attention_mask: Tensor | None) -> ClearCall:
    """The call's facts.

    Raises:
        ValueError: A block was called without them, or with a mask.
    """
    if call is None:
        raise ValueError(
            "a block with CLEAR was called without its grid: call the whole transformer, and with "
            "gradient checkpointing use diffusers 0.35 or later (older ones, and any for Chroma, do not hand "
            "joint_attention_kwargs to checkpointed blocks)."
        )
    if attention_mask is not None:
        raise ValueError(
            "an attention_mask was given, which CLEAR does not take; leave it out of "
            "joint_attention_kwargs or take CLEAR off."
        )
    return call


def joint_projections(attn: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of both streams with their norms, (B, heads, L, D) each, text first.

    Args:
        image: (B, N, C).
        text: (B, T, C).
    """
    query, key, value = image_projections(attn, image)
    names = ("add_q_proj", "add_k_proj", "add_v_proj")
    text_query, text_key, text_value = project(attn, text, names, "to_added_qkv")
    query = torch.cat([normed(attn.norm_added_q, text_query), query], dim=2)
    key = torch.cat([normed(attn.norm_added_k, text_key), key], dim=2)
    return query, key, torch.cat([text_value, value], dim=2)


def image_projections(attn: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of the image stream, or of a single block's only one, with their norms."""
    query, key, value = project(attn, image, ("to_q", "to_k", "to_v"), "to_qkv")
    return normed(attn.norm_q, query), normed(attn.norm_k, key), value


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
    return [by_heads(attn, part) for part in parts]


def by_heads(attn: Any, states: Tensor) -> Tensor:
    """(B, tokens, heads * D) as (B, heads, tokens, D)."""
    # Of the whole model: with tensor parallelism the projections give a share of the heads, and heads stays.
    head_dim = attn.inner_dim // attn.heads
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def normed(norm: nn.Module | None, states: Tensor) -> Tensor:
    """A norm of heads, which some models (SD3) do without."""
    return states if norm is None else norm(states)


def turned(call: ClearCall, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Query and key under FLUX's rotary embedding.

    Args:
        rotary: The model's own (cos, sin) of all tokens, each (L, D).
    """
    rotary = call.rotary or rotary
    if rotary is None:
        return query, key
    from diffusers.models.embeddings import apply_rotary_emb

    cut: Any = tuple(call.mask.cut(part, 0) for part in rotary)
    # A pair is what it gives to models of another kind.
    return cast(Tensor, apply_rotary_emb(query, cut)), cast(Tensor, apply_rotary_emb(key, cut))


def image_and_text(attn: Any, call: ClearCall, out: Tensor) -> tuple[Tensor, Tensor]:
    """Result of a double block's attention, (B, L, C), as its two streams, projected; hidden text gets zeros before."""
    text, image = call.mask.restore(out[:, : call.text]), out[:, call.text :]
    image = attn.to_out[1](attn.to_out[0](image.contiguous()))
    # The last block of SD3 has no use for its text.
    if getattr(attn, "context_pre_only", False):
        return image, text
    return image, attn.to_add_out(text.contiguous())
