"""How the host's model of a family attends: which calls are the joint ones of its blocks, and where the image lies.

Source: the calls of ``optimized_attention`` in ``comfy.ldm`` (flux, chroma, chroma_radiance, krea2, qwen_image, lumina,
modules.diffusionmodules.mmdit, hidream, hunyuan_video, kandinsky5, wan); ``block_type`` and ``block_index`` in
``transformer_options``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ....clear_core.dense_blocks import BlockId
from ....clear_core.families import ModelShape
from ....clear_core.layout import SequenceLayout

Block = tuple[str | None, int | None]
"""A block in the host's numbering; (None, None) if it has no name."""

Inputs = Mapping[str, Any]
"""Other arguments of a call of the model, by keyword."""

Counter = Callable[[Any, tuple[int, int], Inputs], int]
"""Tokens of one kind, from (diffusion model, grid, inputs of the call)."""


def no_tokens(model: Any, grid: tuple[int, int], inputs: Inputs) -> int:
    """A :data:`Counter` of nothing."""
    return 0


@dataclass(frozen=True)
class AttentionForm:
    """How a model attends.

    To the engine, everything before the image's grid is text and everything after it is reference: both see all and
    are seen by all, so that no token has to change its place.

    Attributes:
        text: On which side of the image's grid the text lies; "elsewhere" if it comes by cross-attention. The number
            of tokens on the other side is known before the call, and the rest of the sequence lies on this one.
        beside: Tokens on the other side (references, padding, or both).
        text_is_given: Whether nothing but the text of the call lies on its side, so that another length is a
            stranger's.
        names: Whether ``transformer_options`` names the block of a joint call: "maybe" (other packs leave it out),
            "always" (calls without a name are other attention: refiners, text fusion), or "counted" (the host names
            none, and the joint calls are counted).
        first_of_block: Whether only the first call of a block is self-attention, and cross-attention follows.
        has_image_calls: Whether some blocks attend a second time, with the image alone.
        cut_apart: What a call must not bring, and why not: by keyword, the end of a sentence.
    """

    text: Literal["before", "after", "elsewhere"] = "before"
    beside: Counter = no_tokens
    text_is_given: bool = False
    names: Literal["maybe", "always", "counted"] = "maybe"
    first_of_block: bool = False
    has_image_calls: bool = False
    cut_apart: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def layout(self, grid: tuple[int, int], length: int, beside: int) -> SequenceLayout:
        """The sequence of a joint call of ``length`` tokens; a side with a negative number does not fit."""
        rest = length - grid[0] * grid[1] - beside
        return SequenceLayout(rest, grid, beside) if self.text == "before" else SequenceLayout(beside, grid, rest)

    def planned(self, grid: tuple[int, int], text: int, beside: int) -> SequenceLayout:
        """The sequence that is expected before the call, with the text of the prompt."""
        text = 0 if self.text == "elsewhere" else text
        return self.layout(grid, grid[0] * grid[1] + text + beside, beside)

    def counted(self, layout: SequenceLayout) -> SequenceLayout:
        """The same sequence with its text where it is counted: the scale depends on text and image tokens."""
        if self.text == "before":
            return layout
        return replace(layout, text=layout.reference, reference=layout.text)


class BlockNames:
    """Tells the attention calls of one call of the model apart.

    Args:
        form: How the model attends.
        shape: Its blocks.
    """

    def __init__(self, form: AttentionForm, shape: ModelShape):
        self.form = form
        self.shape = shape
        self.joint = 0
        self.seen: set[Block] = set()

    def of(self, named: Block, is_image_alone: bool) -> Block | None:
        """The block of an attention call; None if it is not the self-attention of image tokens in a block.

        Args:
            named: By ``transformer_options``.
            is_image_alone: Whether it has as many queries as the image has tokens.
        """
        if self.form.names == "counted":
            if not (self.form.has_image_calls and is_image_alone):
                self.joint += 1
            return self._counted(self.joint - 1)
        if named[0] is None:
            return named if self.form.names == "maybe" else None
        if self.form.first_of_block:
            if named in self.seen:
                return None
            self.seen.add(named)
        return named

    def _counted(self, index: int) -> Block:
        ids: tuple[BlockId, ...] = self.shape.block_ids
        return ids[index] if 0 <= index < len(ids) else (None, None)
