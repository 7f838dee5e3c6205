"""Attention masks inside the windows: what is added to the scores, for any rows of queries and for tiles of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import SequenceLayout
from ..spec import ClearSpec
from ..wording import quoted

# Elements compared at a time while a mask is classified: 64 MiB of booleans.
COMPARED_ELEMENTS = 2**26


class ImageBias(Enum):
    """What a bias does between image queries and image keys."""

    NONE = "none"
    """Nothing."""
    PER_QUERY = "per query"
    """Each query has one value for all image keys."""
    PER_PAIR = "per pair"
    """It differs from one image key to another."""


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """A bias or mask on the scores of one sequence, classified once; give it to any number of calls.

    Attributes:
        tensor: (B|1, heads|1, queries, T) if it concerns text columns only, else (B|1, heads|1, queries, L). bool is
            True if a key is seen; a float is added to the scaled scores. Rows may be one row, expanded.
        layout: Of the keys.
        query_rows: The image rows of the queries.
        image: What it does between image queries and image keys.
    """

    tensor: Tensor
    layout: SequenceLayout
    query_rows: range
    image: ImageBias

    @classmethod
    def of(cls, bias: Tensor, layout: SequenceLayout, query_rows: range | None = None) -> AttentionBias:
        """Classify a bias. Allocates far less than the bias itself.

        Args:
            bias: (B|1, heads|1, queries|1, T or L), bool or float. It gets no gradient.
            query_rows: The image rows of the queries; None is all of them.

        Raises:
            ValueError: Its shape or dtype does not fit; the message names it and what was expected.
        """
        text, length = layout.text, layout.length
        rows = range(layout.grid[0]) if query_rows is None else query_rows
        queries = length - layout.image + len(rows) * layout.grid[1]
        if not isinstance(bias, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise ValueError(f"bias is {quoted(bias)}; expected a tensor.")
        if bias.dtype != torch.bool and not bias.is_floating_point():
            raise ValueError(
                f"bias is {bias.dtype}; expected bool (True where a key is seen) or a floating-point "
                "dtype (added to the scores)."
            )
        if bias.ndim != 4 or bias.shape[2] not in (1, queries) or bias.shape[3] not in (text, length):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; expected (batch or 1, heads or 1, {queries} or 1, "
                f"{text} for the text columns or {length} for all)."
            )
        bias = bias.detach()
        image_queries = slice(text, queries - layout.reference) if bias.shape[2] > 1 else slice(None)
        image = ImageBias.NONE
        if bias.shape[3] == length and rows:
            image = _classify(bias[:, :, image_queries, layout.image_slice])
        return cls(bias.expand(-1, -1, queries, -1), layout, rows, image)

    def check(self, q: Tensor, layout: SequenceLayout, query_rows: range, spec: ClearSpec) -> None:
        """Check that it fits a call.

        Args:
            q: (B, heads, queries, D).

        Raises:
            ValueError: It does not; or it differs between image keys that ``spec`` pools.
        """
        if layout != self.layout:
            raise ValueError(f"bias was made for {self.layout}; expected {layout}.")
        if query_rows != self.query_rows:
            raise ValueError(f"bias was made for the queries of {self.query_rows}; expected {query_rows}.")
        for name, found, wanted in zip(("batch", "heads"), self.tensor.shape[:2], q.shape[:2], strict=True):
            if found not in (1, wanted):
                raise ValueError(f"bias has a {name} dimension of {found}; expected 1 or q's, {wanted}.")
        if self.tensor.device != q.device:
            raise ValueError(f"bias is on {self.tensor.device}; expected q's device, {q.device}.")
        if spec.pools and not spec.overview and self.image is ImageBias.PER_PAIR:
            side = spec.down_factor
            raise ValueError(
                "the attention mask differs from one image token to the next, which has no meaning for "
                f"keys that pool {side} x {side} of them; use down_factor 1 (weights without 'down' in their name), or "
                "a mask on the text columns only."
            )

    @property
    def masks(self) -> int:
        """Number of masks over batch and heads."""
        return self.tensor.shape[0] * self.tensor.shape[1]

    def item(self, index: int) -> AttentionBias:
        """The bias of one item of the batch."""
        return self if self.tensor.shape[0] == 1 else replace(self, tensor=self.tensor[index : index + 1])

    def of_heads(self, heads: slice) -> AttentionBias:
        """The bias of some heads."""
        return self if self.tensor.shape[1] == 1 else replace(self, tensor=self.tensor[:, heads])

    def rows(self, queries: slice, dtype: torch.dtype, pooled: int = 0) -> Tensor:
        """What is added to the scores of some queries, over text, image, reference and ``pooled`` keys.

        A pooled key stands for image keys, so it gets what all of them get: their common value, or nothing. Where they
        differ, what it gets is the overview's affair (:func:`.overview.masked_outside`).

        Returns:
            (B|1, heads|1, queries, L + pooled) in ``dtype``; may be a view.
        """
        part = additive(self.tensor[:, :, queries], dtype)
        if part.shape[-1] < self.layout.length:
            return F.pad(part, (0, self.layout.length - part.shape[-1] + pooled))
        if pooled:
            level = part[..., self.layout.text, None]
            if self.image is ImageBias.PER_PAIR:
                level = torch.zeros_like(level)
            part = torch.cat([part, level.expand(*part.shape[:3], pooled)], dim=-1)
        return part

    def image_rows(self, queries: slice) -> Tensor:
        """What is added to the scores of some image queries for each image key.

        Args:
            queries: Positions in q.

        Returns:
            (B|1, heads|1, queries, h * w) float32.
        """
        return additive(self.tensor[:, :, queries, self.layout.image_slice], torch.float32)

    def image_level(self, queries: slice, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of some image queries for all image keys alike, and so for pooled ones.

        Args:
            queries: Counted from the first image query.

        Returns:
            (B|1, heads|1, queries, 1) in ``dtype``; None if nothing is.
        """
        if self.image is ImageBias.NONE:
            return None
        text = self.layout.text
        rows = slice(queries.start + text, queries.stop + text)
        return additive(self.tensor[:, :, rows, text : text + 1], dtype)

    def tiles(self, queries: Tensor, keys: Tensor, window: Tensor | None, pooled: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of some query tiles of one item, window included.

        Args:
            queries: (tiles, queries) int64, positions of image queries in q.
            keys: (tiles, keys) int64, positions of each tile's image keys in k.
            window: bool (queries, keys), True if a query sees a key; None if all see all.
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
        if self.image is ImageBias.PER_QUERY:
            level = columns(slice(layout.text, layout.text + 1))
            to_pooled.copy_(level.expand_as(to_pooled))
            to_image.copy_(level.expand_as(to_image))
        elif self.image is ImageBias.PER_PAIR:
            to_image.copy_(additive(tensor[:, queries[:, :, None], keys[:, None]], dtype))
        if window is not None:
            to_image.masked_fill_(~window, float("-inf"))
        return out.transpose(0, 1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as the values in ``dtype`` that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _classify(block: Tensor) -> ImageBias:
    """:attr:`AttentionBias.image` of (B, heads, image queries or 1, image keys), a few rows at a time."""
    first = block[..., :1]
    step = max(1, COMPARED_ELEMENTS // (block.shape[0] * block.shape[1] * block.shape[3]))
    for start in range(0, block.shape[2], step):
        part = slice(start, start + step)
        if not bool((block[:, :, part] == first[:, :, part]).all()):
            return ImageBias.PER_PAIR
    unchanged = first if block.dtype == torch.bool else first == 0
    return ImageBias.NONE if bool(unchanged.all()) else ImageBias.PER_QUERY
