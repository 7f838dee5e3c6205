"""What every attention of the comparison is: a function of query, key and value, and a count of its pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from clear_core import SequenceLayout


@dataclass(frozen=True)
class Attention(ABC):
    """One way to attend. Text and reference queries see every token, and every query sees text and reference tokens."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and size, as a row of a table has it."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int, weight: Tensor | None
    ) -> Tensor:
        """Attention of one block; :meth:`__call__` has checked the arguments."""

    @abstractmethod
    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        """Query-key pairs of one block and head, exactly; ``clear_core.cost.gflops`` makes operations of them.

        Args:
            block: Index of the block; the ways that differ between blocks are counted for this one.
        """

    def first_weight(self, heads: int, head_size: int) -> Tensor | None:
        """The trainable weight of one block before training, float32; None if nothing is trained."""
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, block: int = 0, weight: Tensor | None = None
    ) -> Tensor:
        """Attention of one block.

        Args:
            q, k, v: (B, heads, L, D) in the order of the layout, norm and RoPE applied; the scale is ``1/sqrt(D)``.
            layout: Text, image and reference tokens of the sequence.
            block: Index of the block, 0 or more, double blocks first.
            weight: The block's trained weight; None is :meth:`first_weight`.

        Returns:
            (B, heads, L, D) in q's dtype.

        Raises:
            ValueError: The tensors do not fit the layout.
        """
        if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape or q.shape[2] != layout.length:
            raise ValueError(
                f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; expected the same (batch, "
                f"heads, tokens, head size) three times, with the {layout.length} tokens of the layout."
            )
        if weight is None:
            weight = self.first_weight(q.shape[1], q.shape[3])
        return self.attend(q, k, v, layout, block, weight)


def check_size(what: str, size: int) -> None:
    """Refuse a size that is not an integer of at least 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise ValueError(f"{what} is {size!r}; expected an integer of at least 1, in tokens.")


def outside(tokens: Tensor, layout: SequenceLayout) -> Tensor:
    """The text and reference tokens of (B, heads, L, D)."""
    image = layout.image_slice
    return torch.cat([tokens[:, :, : image.start], tokens[:, :, image.stop :]], dim=2)


def joined(image: Tensor, others: Tensor, layout: SequenceLayout) -> Tensor:
    """Results of image queries and of :func:`outside` ones, back in the order of the layout."""
    return torch.cat([others[:, :, : layout.text], image, others[:, :, layout.text :]], dim=2)


def pairs_with(layout: SequenceLayout, image_pairs: int) -> int:
    """All pairs, given those of image queries with anything but text and reference tokens."""
    seen_by_all = layout.text + layout.reference
    return seen_by_all * (layout.length + layout.image) + image_pairs
