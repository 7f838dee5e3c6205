"""Attention of one block of a diffusers FLUX by a function of query, key and value."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from clear_core.integrations.diffusers_processor import image_projections, joint_projections


class BlockProcessor(nn.Module):
    """What diffusers calls for a block's attention: projections, norms and RoPE as its own, then :meth:`attend`."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, L, D) each, text first; the result has q's shape."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import apply_rotary_emb

        if encoder_hidden_states is None:
            q, k, v = image_projections(attn, hidden_states)
        else:
            q, k, v = joint_projections(attn, hidden_states, encoder_hidden_states)
        rotary: Any = image_rotary_emb
        q, k = apply_rotary_emb(q, rotary), apply_rotary_emb(k, rotary)
        assert isinstance(q, Tensor) and isinstance(k, Tensor)
        # Under autocast the norms give another precision than the projection of the values.
        out = self.attend(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        text = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, text:])), attn.to_add_out(out[:, :text])
