"""Text masks of one call of a diffusers model with CLEAR: hidden tokens are cut off, what is left becomes a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import AttentionBias
from ..layout import SequenceLayout


@dataclass(frozen=True, eq=False)
class TextMask:
    """What a mask on text tokens comes to.

    Attributes:
        text: Text tokens T of the call.
        kept: (T',) int64 positions of those that some item of the batch sees; None if that is all of them.
        tensor: (B, 1, 1 or T' + N, T') on the scores of the kept ones, bool or float; None if it changes nothing.
    """

    text: int
    kept: Tensor | None = None
    tensor: Tensor | None = None

    @classmethod
    def hiding(cls, seen: Tensor) -> TextMask:
        """A mask that hides text from every query. What hidden tokens would get reaches nobody, and is not computed.

        Args:
            seen: (B, T) bool.
        """
        some = seen.any(dim=0)
        kept = None if bool(some.all()) else some.nonzero()[:, 0]
        rest = seen if kept is None else seen[:, kept]
        return cls(seen.shape[1], kept, None if bool(rest.all()) else rest[:, None, None, :])

    @classmethod
    def adding(cls, weights: Tensor, image: int) -> TextMask:
        """A mask m of numbers, of which the model adds m_q * m_k to the score of each pair.

        The image's is 1, so that a row of the softmax may do without its m_q: m_q * (m_k - 1) is left for text keys,
        and nothing for others.

        Args:
            weights: (B, T) float.
            image: Image tokens N.
        """
        text = weights.shape[1]
        if bool((weights == 1).all()):
            return cls(text)
        queries = torch.cat([weights, weights.new_ones(len(weights), image)], dim=1)
        return cls(text, None, queries[:, None, :, None] * (weights - 1)[:, None, None, :])

    @property
    def shown(self) -> int:
        """Text tokens T' that take part."""
        return self.text if self.kept is None else len(self.kept)

    def bias(self, layout: SequenceLayout) -> AttentionBias | None:
        """The mask for the attention of a sequence whose hidden tokens were cut off."""
        return None if self.tensor is None else AttentionBias.of(self.tensor, layout)

    def cut(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """``tokens`` without the hidden ones; along ``dim`` lie T of text, then any others."""
        return tokens if self.kept is None else tokens.index_select(dim, self._places(self.kept, tokens.shape[dim]))

    def restore(self, tokens: Tensor) -> Tensor:
        """(B, T' + others, C) with zeros for the hidden ones, as plain attention gives to queries without keys."""
        if self.kept is None:
            return tokens
        length = tokens.shape[1] + self.text - len(self.kept)
        whole = tokens.new_zeros(tokens.shape[0], length, tokens.shape[2])
        return whole.index_copy(1, self._places(self.kept, length), tokens)

    def _places(self, kept: Tensor, length: int) -> Tensor:
        return torch.cat([kept, torch.arange(self.text, length, device=kept.device)])


def chroma_mask(mask: Tensor, text: int, image: int) -> TextMask:
    """Chroma's ``attention_mask`` over text and image, which diffusers multiplies into one for pairs of tokens.

    Its pipeline gives floats, which are then added to the scores and hide nothing; bool ones hide.

    Args:
        mask: (B, T + N), 1 or True for the image.
        text: Text tokens T.
        image: Image tokens N.

    Raises:
        ValueError: Shape, dtype or the image's part differ.
    """
    if mask.ndim != 2 or mask.shape[1] != text + image:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; expected (batch, {text + image}), for {text} text and "
            f"{image} image tokens."
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attention_mask is {mask.dtype}; expected bool or a floating-point dtype.")
    if not bool((mask[:, text:] == 1).all()):
        raise ValueError(
            "attention_mask hides or weighs image tokens, which CLEAR does not take; mask text tokens alone, or take "
            "CLEAR off for this call."
        )
    own = mask[:, :text]
    return TextMask.hiding(own) if mask.dtype == torch.bool else TextMask.adding(own, image)


def qwen_mask(mask: Tensor, text: int) -> TextMask:
    """Qwen-Image's ``encoder_hidden_states_mask``, (B, T), of any dtype: what is not 0 is seen.

    Raises:
        ValueError: Its shape differs.
    """
    if mask.ndim != 2 or mask.shape[1] != text:
        raise ValueError(
            f"encoder_hidden_states_mask has shape {tuple(mask.shape)}; expected (batch, {text}), for {text} text "
            "tokens."
        )
    return TextMask.hiding(mask.to(torch.bool))
