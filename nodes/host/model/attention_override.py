"""The window inside the model's attention: the override of one call of the model.

Source: ``transformer_options["optimized_attention_override"]`` and ``comfy.ldm.modules.attention``, in ComfyUI
0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ....clear_core.attention import PreparedAttention
from ....clear_core.dense_blocks import BlockId
from ....clear_core.effective import Effective
from ....clear_core.families import ModelShape
from ....clear_core.layout import SequenceLayout
from ....clear_core.settings import ClearSettings
from .attention_form import AttentionForm, Block, BlockNames
from .call_arguments import (
    Arguments,
    argument,
    as_host,
    block_of,
    fault_of,
    head_size,
    heads_apart,
    misfit,
    shape_fault,
)
from .call_counter import window_pairs_of
from .masks import CallMasks
from .masks import misfit as mask_misfit
from .notices import Notices
from .segments import completed
from .strip_part import StripError, StripPart

OVERRIDE = "optimized_attention_override"

Attention = Callable[..., Tensor]
Method = TypeVar("Method", bound=Callable[..., Any])

JOINT = AttentionForm(text_is_given=True)
"""How FLUX.1's blocks attend, those of its ControlNets too."""


def uncompiled(method: Method) -> Method:
    """``torch.compiler.disable``, which has no type for methods."""
    return cast(Method, torch.compiler.disable(method))


class Window(Protocol):
    """What a call has to know of the CLEAR node; a :class:`.window_patch.WindowPatch`."""

    @property
    def settings(self) -> ClearSettings: ...

    @property
    def shape(self) -> ModelShape: ...

    @property
    def spatial_weights(self) -> Mapping[BlockId, Tensor]: ...

    @property
    def notices(self) -> Notices: ...


class WindowCall:
    """The state of one call of the model, and the attention override that uses it.

    Args:
        patch: Of the CLEAR node.
        layout: The sequence of this call, as far as it is known before the call.
        frame_grid: (h, w) of the whole frame in tokens, of which this call may be a tile.
        previous: The override of another node, or None.
        in_range: Whether the call is in the active range of the sampling.
        strip: The strip of the picture that this call computes, or None for all of it.
        form: How the model attends.

    Attributes:
        layout: The sequence of this call as it is attended to; in a strip, of its own rows.
        whole: The sequence of the whole picture, text where it is counted.
        effective: What the settings come to for it.
        was_reached: Whether the model called the override.
        pairs: Query-key pairs of one sequence so far.
    """

    def __init__(
        self,
        patch: Window,
        layout: SequenceLayout,
        frame_grid: tuple[int, int],
        previous: Attention | None,
        in_range: bool,
        strip: StripPart | None = None,
        form: AttentionForm = JOINT,
    ):
        self.patch = patch
        self.frame_grid = frame_grid
        self.previous = previous
        self.in_range = in_range
        self.strip = strip
        self.form = form
        self.names = BlockNames(form, patch.shape)
        self.was_reached = False
        self.masks = CallMasks()
        self.pairs = 0
        # Tokens on the side of the image where the text is not.
        self.beside = layout.reference if form.text == "before" else layout.text
        self._take(layout)
        self._is_told = form.text_is_given

    def set_layout(self, layout: SequenceLayout) -> None:
        """Take the token counts of this call, which are told."""
        self._take(layout)
        self._is_told = True

    def _take(self, layout: SequenceLayout) -> None:
        self.layout = layout
        counted = self.form.counted(layout)
        self.whole = counted if self.strip is None else self.strip.whole(counted)
        self.effective = Effective.of(self.patch.settings, self.patch.shape, self.whole, self.frame_grid)
        # What blocks brought and what was found for it: the blocks of a call bring one or two kinds.
        self._fitting: set[Any] = set()
        self._prepared: dict[Any, tuple[PreparedAttention, int]] = {}

    @property
    def is_dense(self) -> bool:
        """Whether no block has windows in this call."""
        return not (self.in_range and self.effective.active)

    @property
    def words(self) -> str:
        """Size and attention of this call, for users."""
        height, width = (side * self.patch.shape.family.token_pixels for side in self.frame_grid)
        return f"{width} x {height} px {'without windows' if self.is_dense else f'with {self.effective.spec}'}"

    # The host's compile nodes drop guards on transformer_options, so compiled code would keep the first call's state.
    @uncompiled
    def observe_input(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take the token counts that the blocks will get (``post_input`` patch, after those of other nodes)."""
        text, image = args["txt"].shape[1], args["img"].shape[1]
        # All tokens after the image are treated as reference tokens, which see all and are seen by all.
        self.set_layout(SequenceLayout(text, self.layout.grid, image - self.layout.image))
        return args

    @uncompiled
    def attend(self, func: Attention, *args: Any, **kwargs: Any) -> Tensor:
        """The override: ``func`` is the host's own attention, the rest are its arguments from a block."""
        self.was_reached = True
        is_image_alone = args[0].shape[-2] == self.layout.image
        block = self.names.of(block_of(kwargs), is_image_alone)
        if block is None:
            return self._handed_on(func, args, kwargs)
        if self.strip is not None:
            return self._in_strip(self.strip, block, func, args, kwargs)
        alone = self.form.has_image_calls and is_image_alone
        if not (alone or self._is_told):
            self._fit(args[1].shape[-2])
        if not self._is_windowed(block):
            return self._previous(func, args, kwargs)
        layout = SequenceLayout(0, self.layout.grid) if alone else self.layout
        mask = argument("mask", 4, args, kwargs)
        apart = heads_apart(args, kwargs)
        if apart is None:
            return self._not_windowed(shape_fault(args[0]), func, args, kwargs)
        q, k, v = apart
        rows = slice(None)
        if q.shape[-2] != k.shape[-2]:
            whole = completed(q, k, layout, self.beside, self.form)
            if whole is not None and mask is None:
                q, layout, rows = whole
        if (reason := self._why_not(q, k, v, layout, mask)) is not None:
            return self._not_windowed(reason, func, args, kwargs)
        cut = None if mask is None else self.masks.text_cut(mask, layout)
        if cut is not None:
            mask, layout = None, cut.layout
            q, k, v = cut.kept(q), cut.kept(k), cut.kept(v)
        attention, pairs = self._attention(q, layout, kwargs.get("scale"))
        self.pairs += pairs
        bias = None if mask is None else self.masks.classify(mask, layout)
        out, _ = attention(q, k, v, spatial_weight=self._weight(block), bias=bias)
        if cut is not None:
            out = cut.restored(out)
        return as_host(out[:, :, rows], args, kwargs)

    def _fit(self, length: int) -> None:
        """Take the text as long as a sequence of ``length`` tokens leaves room for."""
        found = self.form.layout(self.layout.grid, length, self.beside)
        if found != self.layout and min(found.text, found.reference) >= 0:
            self._take(found)

    def _not_windowed(self, reason: str, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        self.patch.notices.log_once(reason, f"{reason}; the window is not applied there.")
        return self._previous(func, args, kwargs)

    def _why_not(self, q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, mask: Tensor | None) -> str | None:
        """Why the window cannot be applied to these tensors, or None."""
        like = (q.shape, k.shape, v.shape, q.dtype, q.device, layout)
        if like not in self._fitting:
            reason = misfit(q, k, v, layout) or fault_of(q)
            if reason is not None:
                return reason
            self._fitting.add(like)
        return None if mask is None else mask_misfit(mask, q)

    def _attention(self, q: Tensor, layout: SequenceLayout, scale: float | None) -> tuple[PreparedAttention, int]:
        """The attention for tensors of a sequence, and its pairs. scale: Of the host's call; None is the usual one."""
        like = (layout, q.shape[-1], scale)
        found = self._prepared.get(like)
        if found is None:
            effective, head_dim = self.effective, q.shape[-1]
            attention = PreparedAttention(
                grid=layout.grid,
                spec=effective.spec,
                reference_tokens=layout.reference,
                scale=effective.scale_for(head_dim) if scale is None else scale * effective.query_factor_for(head_dim),
                backend=effective.backend,
                on_chunk=throw_exception_if_processing_interrupted,
            )
            found = self._prepared[like] = (attention, window_pairs_of(layout, effective.spec))
        return found

    def _is_windowed(self, block: Block) -> bool:
        return self.in_range and self.effective.is_windowed(block)

    def _weight(self, block: Block) -> Tensor | None:
        return self.patch.spatial_weights.get(cast(BlockId, block))

    def _in_strip(
        self, strip: StripPart, block: Block, func: Attention, args: Arguments, kwargs: dict[str, Any]
    ) -> Tensor:
        q, k, v = args[:3]
        if q.shape[-2] != k.shape[-2]:
            return self._previous(func, args, kwargs)  # Keys of another node's own: every query sees all of them.
        is_by_heads = q.ndim == 4 and bool(argument("skip_reshape", 6, args, kwargs))
        reason = misfit(q, k, v, self.layout) if is_by_heads else shape_fault(q)
        if argument("mask", 4, args, kwargs) is not None:
            reason = "an attention mask belongs to the whole picture"
        if reason is not None:
            raise StripError(reason)
        is_windowed = self._is_windowed(block)
        fault = fault_of(q) if is_windowed else None
        if fault is not None:
            self.patch.notices.log_once(fault, f"{fault}; the window is not applied there.")
        elif is_windowed:
            self.pairs += window_pairs_of(self.whole, self.effective.spec)
            out = strip.windows(q, k, v, self.effective, self.layout.reference, self._weight(block))
            return as_host(out, args, kwargs)
        self.pairs += self.whole.length**2
        by_heads = bool(argument("skip_output_reshape", 7, args, kwargs))
        return strip.dense(
            lambda *qkv: self._dense(func, (*qkv, *args[3:]), kwargs), q, k, v, self.layout.reference, by_heads
        )

    def _previous(self, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        self.pairs += args[0].shape[-2] * args[1].shape[-2]
        return self._dense(func, args, kwargs)

    def _dense(self, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        """Dense attention: the host's or another node's, with the effective scale."""
        factor = self.effective.query_factor_for(head_size(args, kwargs))
        if factor != 1.0:
            args = (args[0] * factor, *args[1:])
        return self._handed_on(func, args, kwargs)

    def _handed_on(self, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        if self.previous is not None:
            return self.previous(func, *args, **kwargs)
        return func(*args, **kwargs)
