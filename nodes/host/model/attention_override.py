"""The window inside the model's attention: one APPLY_MODEL wrapper, which gives every call its own state.

Source: ``comfy.patcher_extension.WrappersMP.APPLY_MODEL`` and
``transformer_options["optimized_attention_override"]``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ....clear_core.attention import PreparedAttention
from ....clear_core.dense_blocks import BlockId
from ....clear_core.effective import Effective
from ....clear_core.families import ModelShape
from ....clear_core.layout import SequenceLayout, token_grid
from ....clear_core.settings import ClearSettings
from ....clear_core.weights import ClearFile
from .bypassed import bypassed_sentence
from .call_arguments import Arguments, argument, as_host, block_of, fault_of, misfit
from .call_counter import current_counter, window_pairs_of
from .host_sparse import RULE as SPARSE_RULE
from .host_sparse import is_host_sparse
from .masks import CallMasks
from .masks import misfit as mask_misfit
from .notices import Notices
from .rope_embedder import say_not_stretched, stretched
from .sampling_range import is_in_range
from .strip_part import KEY as STRIP
from .strip_part import StripError, StripPart
from .tile_frame import KEY as FRAME_PART

OVERRIDE = "optimized_attention_override"

Attention = Callable[..., Tensor]
Method = TypeVar("Method", bound=Callable[..., Any])


def uncompiled(method: Method) -> Method:
    """``torch.compiler.disable``, which has no type for methods."""
    return cast(Method, torch.compiler.disable(method))


@dataclass(frozen=True, eq=False)
class WindowPatch:
    """The wrapper that one CLEAR node adds to its clone of the model.

    Later clones and threads share it, so it never changes.

    Attributes:
        settings: As set on the node.
        shape: The model's.
        references: Keyword of a call that holds reference latents; None if the model takes none.
        spatial_weights: (d, d) pooling weights by block; a block that is not in it pools by the mean.
        file: The distilled weights in use, or None.
        strength: Share of them, 0 to 1.
        tensors: The weights file's tensors, kept so that other clones share them.
        remarks: Sentences about the weights, for the texts about the model.
        weight_patches: Entries of this node in ``ModelPatcher.patches``, by key; a later CLEAR node removes them.
        notices: Log lines, each once per node.
    """

    settings: ClearSettings
    shape: ModelShape
    references: str | None = None
    spatial_weights: Mapping[BlockId, Tensor] = field(default_factory=dict[BlockId, Tensor])
    file: ClearFile | None = None
    strength: float = 1.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    remarks: tuple[str, ...] = ()
    weight_patches: dict[str, list[Arguments]] = field(default_factory=dict[str, list[Arguments]])
    notices: Notices = field(default_factory=Notices)

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model with the window for this latent's grid. x: (B, C, H, W) latent."""
        transformer_options = transformer_options or {}
        if x.ndim != 4:
            self.notices.log_once(
                "latent",
                f"the latent has shape {tuple(x.shape)}, expected (batch, channels, height, "
                "width); the window is not applied.",
            )
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        latents = extra.get(self.references) if self.references else None
        references = sum(math.prod(self.grid_of(latent)) for latent in latents or ())
        text = 0 if c_crossattn is None else c_crossattn.shape[1]
        part = transformer_options.get(FRAME_PART)
        call = WindowCall(
            self,
            SequenceLayout(text, self.grid_of(x), references),
            part.grid if part else self.grid_of(x),
            transformer_options.get(OVERRIDE),
            self.is_in_range(executor.class_obj.model_sampling, t),
            transformer_options.get(STRIP),
        )

        if is_host_sparse(call.previous):
            self.notices.log_once("sparse", SPARSE_RULE)

        # Set in dense calls too: the host's compile nodes drop guards on transformer_options, so code that was compiled
        # without the override would never have windows.
        options = transformer_options.copy()
        options[OVERRIDE] = call.attend
        patches = options.get("patches", {})
        options["patches"] = {**patches, "post_input": [*patches.get("post_input", ()), call.observe_input]}
        stretch = call.effective.stretch
        say_not_stretched(stretch, executor.class_obj.diffusion_model, self.notices)
        with stretched(stretch, t):
            out = executor(x, t, c_concat, c_crossattn, control, options, **extra)
        counter = current_counter()
        if call.was_reached and counter:
            counter.add(out.shape[0], call.whole.length, call.pairs, call.words)
        # A cache (EasyCache) skips the model in some calls, but never in the first of a run; packs with a forward of
        # their own skip it from the first call on.
        if not call.was_reached and not (counter and counter.calls):
            self.notices.log_once("bypassed", bypassed_sentence(executor.class_obj.diffusion_model))
        return out

    def grid_of(self, latent: Tensor) -> tuple[int, int]:
        """(h, w) in tokens of a latent (B, C, H, W)."""
        height, width = latent.shape[-2:]
        return token_grid(height, width, self.shape.family.token_cells)

    def is_in_range(self, sampling: Any, sigma: Tensor) -> bool:
        """Whether windows are active at a noise level, of a batch (B,), of the model's ``model_sampling``."""
        return is_in_range(sampling, sigma, self.settings.start_percent, self.settings.end_percent)


class WindowCall:
    """The state of one call of the model, and the attention override that uses it.

    Args:
        patch: Of the CLEAR node.
        layout: The sequence of this call, as far as it is known before the call.
        frame_grid: (h, w) of the whole frame in tokens, of which this call may be a tile.
        previous: The override of another node, or None.
        in_range: Whether the call is in the active range of the sampling.
        strip: The strip of the picture that this call computes, or None for all of it.

    Attributes:
        layout: The sequence of this call; in a strip, of its own rows.
        effective: What the settings come to for it.
        was_reached: Whether the model called the override.
        pairs: Query-key pairs of one sequence so far.
    """

    def __init__(
        self,
        patch: WindowPatch,
        layout: SequenceLayout,
        frame_grid: tuple[int, int],
        previous: Attention | None,
        in_range: bool,
        strip: StripPart | None = None,
    ):
        self.patch = patch
        self.frame_grid = frame_grid
        self.previous = previous
        self.in_range = in_range
        self.strip = strip
        self.was_reached = False
        self.masks = CallMasks()
        self.pairs = 0
        self.set_layout(layout)

    def set_layout(self, layout: SequenceLayout) -> None:
        """Take the token counts of this call."""
        self.layout = layout
        self.whole = layout if self.strip is None else self.strip.whole(layout)
        self.effective = Effective.of(self.patch.settings, self.patch.shape, self.whole, self.frame_grid)
        # What the last block brought, and the attention and pairs found for it: all blocks of a call bring the same.
        self._prepared: tuple[Any, PreparedAttention, int] | None = None

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
        """The override: ``func`` is the host's own attention, the rest are its arguments from a FLUX block."""
        self.was_reached = True
        if self.strip is not None:
            return self._in_strip(self.strip, func, args, kwargs)
        if not self._is_windowed(kwargs):
            return self._previous(func, args, kwargs)
        q, k, v = args[:3]
        like = (q.shape, k.shape, v.shape, q.dtype, q.device, argument("skip_reshape", 6, args, kwargs))
        mask = argument("mask", 4, args, kwargs)
        prepared = self._prepared
        if prepared is None or prepared[0] != like:
            reason = self._why_not(q, k, v, bool(like[-1]))
            if reason is not None:
                return self._not_windowed(reason, func, args, kwargs)
            prepared = self._prepared = (like, self._prepare(q), window_pairs_of(self.layout, self.effective.spec))
        if mask is not None and (reason := mask_misfit(mask, q)) is not None:
            return self._not_windowed(reason, func, args, kwargs)
        self.pairs += prepared[2]
        return self._windowed(prepared[1], mask, args, kwargs)

    def _not_windowed(self, reason: str, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        self.patch.notices.log_once(reason, f"{reason}; the window is not applied there.")
        return self._previous(func, args, kwargs)

    def _why_not(self, q: Tensor, k: Tensor, v: Tensor, by_heads: bool) -> str | None:
        """Why the window cannot be applied to these tensors, or None."""
        return misfit(q, k, v, by_heads, self.layout) or fault_of(q)

    def _prepare(self, q: Tensor) -> PreparedAttention:
        effective = self.effective
        return PreparedAttention(
            grid=self.layout.grid,
            spec=effective.spec,
            reference_tokens=self.layout.reference,
            scale=effective.scale_for(q.shape[-1]),
            backend=effective.backend,
            on_chunk=throw_exception_if_processing_interrupted,
        )

    def _windowed(
        self, attention: PreparedAttention, mask: Tensor | None, args: Arguments, kwargs: dict[str, Any]
    ) -> Tensor:
        weight = self._weight(kwargs)
        bias = None if mask is None else self.masks.classify(mask, self.layout)
        out, _ = attention(*args[:3], spatial_weight=weight, bias=bias)
        return as_host(out, args, kwargs)

    def _is_windowed(self, kwargs: dict[str, Any]) -> bool:
        return self.in_range and self.effective.is_windowed(block_of(kwargs))

    def _weight(self, kwargs: dict[str, Any]) -> Tensor | None:
        return self.patch.spatial_weights.get(cast(BlockId, block_of(kwargs)))

    def _in_strip(self, strip: StripPart, func: Attention, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        q, k, v = args[:3]
        if q.shape[-2] != k.shape[-2]:
            return self._previous(func, args, kwargs)  # Keys of another node's own: every query sees all of them.
        reason = misfit(q, k, v, bool(argument("skip_reshape", 6, args, kwargs)), self.layout)
        if argument("mask", 4, args, kwargs) is not None:
            reason = "an attention mask belongs to the whole picture"
        if reason is not None:
            raise StripError(reason)
        fault = fault_of(q) if self._is_windowed(kwargs) else None
        if fault is not None:
            self.patch.notices.log_once(fault, f"{fault}; the window is not applied there.")
        elif self._is_windowed(kwargs):
            self.pairs += window_pairs_of(self.whole, self.effective.spec)
            out = strip.windows(q, k, v, self.effective, self.layout.reference, self._weight(kwargs))
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
        q = args[0]
        head_dim = q.shape[-1] if q.ndim == 4 else q.shape[-1] // args[3]
        factor = self.effective.query_factor_for(head_dim)
        if factor != 1.0:
            args = (q * factor, *args[1:])
        if self.previous is not None:
            return self.previous(func, *args, **kwargs)
        return func(*args, **kwargs)
