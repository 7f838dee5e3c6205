"""Attention masks inside the windows: what is added to the scores, for any rows of queries and for tiles of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import SequenceLayout
from ..spec import ClearSpec

# Comparisons at a time while a mask is looked through: 64 MiB of booleans.
LOOK_NUMBERS = 2**26


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """A bias or mask on the scores of one sequence, looked through once; give it to any number of calls.

    Attributes:
        tensor: (B|1, heads|1, L, T) where it concerns text columns only, else (B|1, heads|1, L, L). bool is True
            where a key is seen; a float is added to the scaled scores. Rows may be one row, expanded.
        layout: Of the sequence.
        image: What it does between image queries and image keys. "none": nothing; "level": each query has one number
            for all of them; "pairs": it differs from key to key.
    """

    tensor: Tensor
    layout: SequenceLayout
    image: str

    @classmethod
    def of(cls, bias: Tensor, layout: SequenceLayout) -> AttentionBias:
        """Look a bias through. Nothing as large as it is made on the way.

        Args:
            bias: (B|1, heads|1, L|1, T or L), bool or float. It gets no gradient.

        Raises:
            ValueError: Its shape or dtype does not fit; the message names it and what was expected.
        """
        text, length = layout.text, layout.length
        if not isinstance(bias, Tensor):
            raise ValueError(f"bias is {bias!r}; expected a tensor.")
        if bias.dtype != torch.bool and not bias.is_floating_point():
            raise ValueError(
                f"bias is {bias.dtype}; expected bool (True where a key is seen) or a floating-point "
                "dtype (added to the scores)."
            )
        if bias.ndim != 4 or bias.shape[2] not in (1, length) or bias.shape[3] not in (text, length):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; expected (batch or 1, heads or 1, {length} or 1, "
                f"{text} for the text columns or {length} for all)."
            )
        bias = bias.detach()
        image = _between_image_tokens(bias, layout) if bias.shape[3] == length else "none"
        return cls(bias.expand(-1, -1, length, -1), layout, image)

    def check(self, q: Tensor, layout: SequenceLayout, spec: ClearSpec) -> None:
        """Whether it fits a call.

        Args:
            q: (B, heads, L, D).

        Raises:
            ValueError: It does not; or it differs between image keys that ``spec`` pools.
        """
        if layout != self.layout:
            raise ValueError(f"bias was looked through for {self.layout}; expected {layout}.")
        for name, found, wanted in zip(("batch", "heads"), self.tensor.shape, q.shape, strict=False):
            if found not in (1, wanted):
                raise ValueError(f"bias has a {name} dimension of {found}; expected 1 or q's, {wanted}.")
        if self.tensor.device != q.device:
            raise ValueError(f"bias is on {self.tensor.device}; expected q's device, {q.device}.")
        if spec.pools and self.image == "pairs":
            side = spec.down_factor
            raise ValueError(
                "the attention mask differs from one image token to the next, which has no meaning for "
                f"keys that pool {side} x {side} of them; use down_factor 1 (weights without 'down' in "
                "their name), or a mask on the text columns only."
            )

    @property
    def masks(self) -> int:
        """How many masks over batch and heads it is."""
        return self.tensor.shape[0] * self.tensor.shape[1]

    def item(self, index: int) -> AttentionBias:
        """That of one item of the batch."""
        return self if self.tensor.shape[0] == 1 else replace(self, tensor=self.tensor[index : index + 1])

    def rows(self, queries: slice, dtype: torch.dtype, pooled: int = 0) -> Tensor:
        """What is added to the scores of some queries, over text, image, reference and ``pooled`` keys.

        A pooled key stands for image keys, so it gets what all of them get: their common number, or nothing.

        Returns:
            (B|1, heads|1, queries, L + pooled) in ``dtype``; may be a view.
        """
        part = additive(self.tensor[:, :, queries], dtype)
        if part.shape[-1] < self.layout.length:
            return F.pad(part, (0, self.layout.length - part.shape[-1] + pooled))
        if pooled:
            level = part[..., self.layout.text, None].expand(*part.shape[:3], pooled)
            part = torch.cat([part, level], dim=-1)
        return part

    def tiles(self, queries: Tensor, keys: Tensor, window: Tensor | None, pooled: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of some query tiles of one item, window included.

        Args:
            queries: (tiles, queries) int64, image queries by their place in the sequence.
            keys: (tiles, keys) int64, each tile's image keys by their place in the sequence.
            window: bool (queries, keys), True where a query sees a key; None where all see all.
            pooled: Number of pooled keys.

        Returns:
            (tiles, heads|1, queries, pooled + T + R + keys) in ``dtype``, in this order.
        """
        tensor, layout = self.tensor[0], self.layout

        def columns(of: slice) -> Tensor:
            part = tensor[..., of].index_select(1, queries.flatten())
            return additive(part, dtype).unflatten(1, queries.shape)

        widths = [pooled, layout.text, layout.reference, keys.shape[1]]
        out = torch.zeros(len(tensor), *queries.shape, sum(widths), dtype=dtype, device=tensor.device)
        to_pooled, to_text, to_references, to_image = out.split(widths, dim=-1)
        to_text.copy_(columns(slice(0, layout.text)))
        if tensor.shape[-1] == layout.length:
            to_references.copy_(columns(slice(layout.image_slice.stop, None)))
        if self.image == "level":
            level = columns(slice(layout.text, layout.text + 1))
            to_pooled.copy_(level.expand_as(to_pooled))
            to_image.copy_(level.expand_as(to_image))
        elif self.image == "pairs":
            to_image.copy_(additive(tensor[:, queries[:, :, None], keys[:, None]], dtype))
        if window is not None:
            to_image.masked_fill_(~window, float("-inf"))
        return out.transpose(0, 1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as the numbers in ``dtype`` that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _between_image_tokens(bias: Tensor, layout: SequenceLayout) -> str:
    """:attr:`AttentionBias.image` of a full bias, from its own numbers, a few rows at a time."""
    image = layout.image_slice
    block = bias[:, :, image if bias.shape[2] > 1 else slice(None), image]
    first = block[..., :1]
    step = max(1, LOOK_NUMBERS // (block.shape[0] * block.shape[1] * layout.image))
    for start in range(0, block.shape[2], step):
        part = slice(start, start + step)
        if not bool((block[:, :, part] == first[:, :, part]).all()):
            return "pairs"
    unchanged = first if bias.dtype == torch.bool else first == 0
    return "none" if bool(unchanged.all()) else "level"
