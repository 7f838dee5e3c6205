"""Attention masks as the host hands them to an attention call: regional prompts, Redux strength, other nodes' own.

Source: ``attention_mask`` in ``comfy.model_base.Flux.extra_conds``, which brings a conditioning's mask to the size of
the picture (``comfy.utils.upscale_dit_mask``); the model then casts it to its dtype, a bool one too, so that True adds
1 to a score and hides nothing. Patches may hand blocks any mask that ``comfy.ldm.modules.attention`` takes: (L, L),
(B, L, L) or (B, heads, L, L), float, or bool, which hides as in its ``attention_pytorch``. Qwen-Image and HunyuanImage
hand on (B, 1, L), which hides the padding of short prompts from all queries. ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....clear_core.attention import AttentionBias, ImageBias
from ....clear_core.layout import TOKEN_PIXELS, SequenceLayout

MOST_BYTES = 10 * 2**30
"""Largest mask between image tokens that runs: a picture of 4096 x 4096 px has 8.1 GiB of it in 16-bit numbers. It
grows with the square of the area and is copied to the card in every step, so that larger ones leave a card no room for
the model."""


def with_heads(mask: Tensor) -> Tensor:
    """A mask with its dimensions of batch and heads, as ``attention_pytorch`` adds them."""
    while mask.ndim < 4:
        mask = mask[None] if mask.ndim < 3 else mask[:, None]
    return mask


def misfit(mask: Tensor, q: Tensor) -> str | None:
    """Why a mask does not belong to queries (B, heads, L, D), or None."""
    batch, heads, length, _ = q.shape
    if (
        2 <= mask.ndim <= 4
        and mask.device == q.device
        and (mask.dtype == torch.bool or mask.is_floating_point())
        and all(
            found in (1, wanted) for found, wanted in zip(with_heads(mask).shape, (batch, heads, length), strict=False)
        )
        and mask.shape[-1] == length
    ):
        return None
    return (
        f"an attention mask of shape {tuple(mask.shape)} and {mask.dtype} on {mask.device} does not fit {batch} x "
        f"{heads} x {length} tokens on {q.device}"
    )


@dataclass(frozen=True)
class TextCut:
    """A mask that hides the same tokens beside the image from every query: the sequence without them.

    Attributes:
        keep: (tokens,) int64, the tokens that are kept; None if all are.
        length: Tokens of the sequence with the hidden ones.
        layout: Of the kept ones.
    """

    keep: Tensor | None
    length: int
    layout: SequenceLayout

    @classmethod
    def of(cls, mask: Tensor, layout: SequenceLayout) -> TextCut | None:
        """What a mask (B|1, heads|1, queries|1, L) comes to; None if it does more than that."""
        if mask.shape[1] != 1 or mask.shape[2] != 1:
            return None
        columns = mask[:, 0, 0].cpu()
        if columns.dtype == torch.bool:
            hidden = ~columns
        else:
            hidden = columns <= torch.finfo(columns.dtype).min / 2
            if bool((~hidden & (columns != 0)).any()):
                return None
        first = hidden[0]
        if bool((hidden != first).any()) or bool(first[layout.image_slice].any()):
            return None
        kept = ~first
        keep = None if bool(kept.all()) else kept.nonzero()[:, 0].to(mask.device)
        before, after = int(kept[: layout.text].sum()), int(kept[layout.image_slice.stop :].sum())
        return cls(keep, len(kept), SequenceLayout(before, layout.grid, after))

    def kept(self, tensor: Tensor) -> Tensor:
        """(B, heads, L, D) without the hidden tokens."""
        return tensor if self.keep is None else tensor.index_select(2, self.keep)

    def restored(self, tensor: Tensor) -> Tensor:
        """(B, heads, L, D) with zeros for the hidden tokens, which nothing that is kept ever looks at."""
        if self.keep is None:
            return tensor
        whole = tensor.new_zeros((*tensor.shape[:2], self.length, tensor.shape[3]))
        return whole.index_copy_(2, self.keep, tensor)


class CallMasks:
    """The mask of one call of the model, classified once and not in each of the 57 blocks."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.bias: AttentionBias | None = None
        self.cut: tuple[Tensor, SequenceLayout, TextCut | None] | None = None

    def text_cut(self, mask: Tensor, layout: SequenceLayout) -> TextCut | None:
        """How a mask that hides tokens beside the image from all queries is done without."""
        cut = self.cut
        if cut is None or cut[0] is not mask or cut[1] != layout:
            cut = self.cut = (mask, layout, TextCut.of(with_heads(mask), layout))
        return cut[2]

    def classify(self, mask: Tensor, layout: SequenceLayout) -> AttentionBias:
        """The mask as the windows take it.

        Raises:
            ValueError: It tells image tokens apart and is larger than :data:`MOST_BYTES`.
        """
        bias = self.bias
        if bias is None or self.mask is not mask or bias.layout != layout:
            bias = AttentionBias.of(with_heads(mask), layout)
            self.mask, self.bias = mask, bias
        size = mask.numel() * mask.element_size()
        if bias.image is ImageBias.PER_PAIR and size > MOST_BYTES:
            raise ValueError(
                f"the attention mask tells image tokens apart and takes {size / 2**30:.1f} GiB for {layout.length} "
                f"tokens ({layout.grid[1] * TOKEN_PIXELS} x {layout.grid[0] * TOKEN_PIXELS} px), but CLEAR takes such "
                f"masks up to {MOST_BYTES / 2**30:.0f} GiB; make the picture smaller or run it in tiles, or use a mask "
                "on the text alone (Redux strength, prompts for regions)."
            )
        return bias
