"""The window inside the model's attention: one APPLY_MODEL wrapper, which gives every call its own state.

Source: ``comfy.patcher_extension.WrappersMP.APPLY_MODEL`` and
``transformer_options["optimized_attention_override"]``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ....clear_core.attention import clear_attention
from ....clear_core.dense_blocks import BlockId
from ....clear_core.layout import SequenceLayout, token_grid
from ....clear_core.settings import ClearSettings
from ....clear_core.weights import ClearFile
from .call_counter import current_counter, window_pairs_of
from .host_sparse import RULE as SPARSE_RULE
from .host_sparse import is_host_sparse
from .masks import CallMasks, misfit
from .notices import Notices
from .rope_embedder import foreign_embedder, ntk_factor
from .tile_frame import KEY as FRAME_PART

OVERRIDE = "optimized_attention_override"


@dataclass
class WindowPatch:
    """The wrapper that one CLEAR node adds to its clone of the model.

    It is shared by later clones and by threads, so nothing in it changes from call to call.

    Attributes:
        settings: Spec, scale, NTK factor, backend, and where in the sampling and from which size on they apply.
        dense_blocks: Blocks that attend without the window.
        takes_references: Whether the model looks at reference latents that come with the prompt.
        spatial_weights: (d, d) pooling weights by block; a block that is not in it pools by the mean.
        file: The distilled weights that are in use, or None.
        strength: How much of them, 0 to 1.
        tensors: The weights file's tensors, held so that other clones share them.
        weight_patches: The entries this node put into ``ModelPatcher.patches``, by key, so that a later CLEAR node
            can take them out again.
    """

    settings: ClearSettings
    dense_blocks: frozenset[BlockId] = frozenset()
    takes_references: bool = True
    spatial_weights: dict[BlockId, Tensor] = field(default_factory=dict)
    file: ClearFile | None = None
    strength: float = 1.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    weight_patches: dict[str, list[tuple]] = field(default_factory=dict)
    notices: Notices = field(default_factory=Notices)

    def __call__(
        self,
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict = {},
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model with the window for this latent's grid. x: (B, C, H, W) latent."""
        if x.ndim != 4:
            self.notices.say(
                "latent",
                f"the latent has shape {tuple(x.shape)}, expected (batch, channels, height, "
                "width); the window is not applied.",
            )
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        references = sum(_tokens(latent) for latent in (self.takes_references and extra.get("ref_latents")) or ())
        text = 0 if c_crossattn is None else c_crossattn.shape[1]
        layout = SequenceLayout(text, token_grid(*x.shape[-2:]), references)
        part = transformer_options.get(FRAME_PART)
        call = WindowCall(self, layout, part.grid if part else layout.grid, transformer_options.get(OVERRIDE))
        call.is_dense = self.is_left_out(call.frame.image, executor.class_obj.model_sampling, t)

        if is_host_sparse(call.previous):
            self.notices.say("sparse", SPARSE_RULE)

        # Also where all blocks are dense: the host's compile nodes drop guards on transformer_options, so code compiled
        # without the override would stay without it when the window begins.
        options = transformer_options.copy()
        options[OVERRIDE] = call.attend
        patches = options.get("patches", {})
        options["patches"] = {**patches, "post_input": [*patches.get("post_input", ()), call.observe_input]}
        factor = self.settings.ntk(call.frame.image)
        foreign = foreign_embedder(executor.class_obj.diffusion_model)
        if factor != 1.0 and foreign:
            self.notices.say(
                "embedder",
                f"the model's position embedder is a {foreign} of another node; it is kept, "
                f"and ntk_factor {factor:g} is not applied.",
            )
        with ntk_factor(factor):
            out = executor(x, t, c_concat, c_crossattn, control, options, **extra)
        counter = current_counter()
        if call.was_reached and counter:
            counter.add(out.shape[0], call.layout.length, call.pairs, call.words)
        # A cache (EasyCache) leaves the model out of some calls, but never of a run's first; packs that compute it by
        # themselves do so from the first call on.
        if not call.was_reached and not (counter and counter.calls):
            self.notices.say(
                "bypassed", "another node computes this model's attention by itself, so the window is not applied."
            )
        return out

    def is_left_out(self, image_tokens: int, sampling: Any, sigma: Tensor) -> bool:
        """Whether the user asked for no window in frames of this size, or at this noise level.

        Args:
            sampling: The model's ``model_sampling``.
            sigma: (B,).
        """
        return image_tokens < self.settings.min_tokens or not _is_within(self.settings, sampling, sigma)


class WindowCall:
    """The state of one call of the model, and the attention override that uses it.

    Attributes:
        is_dense: Whether the user asked for no window in this call.
        was_reached: Whether the model came to the override.
    """

    def __init__(
        self, patch: WindowPatch, layout: SequenceLayout, frame_grid: tuple[int, int], previous: Callable | None
    ):
        self.patch = patch
        self.layout = layout
        self.frame_grid = frame_grid
        self.previous = previous
        self.is_dense = False
        self.was_reached = False
        self.masks = CallMasks()
        self.pairs = 0  # Query-key pairs of one sequence so far, for the clock.

    @property
    def frame(self) -> SequenceLayout:
        """Text and image tokens of the whole frame, also where this call is a tile of it: scale and NTK go by them."""
        return SequenceLayout(self.layout.text, self.frame_grid)

    @property
    def words(self) -> str:
        """What this call computes, for people."""
        rows, columns = self.frame_grid
        windows = "without windows" if self.is_dense else f"with {self.patch.settings.spec}"
        return f"{columns * 16} x {rows * 16} px {windows}"

    # The host's compile nodes drop guards on transformer_options, so compiled code would keep the first call's state.
    @torch.compiler.disable
    def observe_input(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take the token counts that the blocks will see (``post_input`` patch, after those of other nodes)."""
        text, image = args["txt"].shape[1], args["img"].shape[1]
        # Whatever follows the image tokens is treated as reference tokens: seen by all, sees all.
        self.layout = SequenceLayout(text, self.layout.grid, image - self.layout.image)
        return args

    @torch.compiler.disable
    def attend(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The override: ``func`` is the host's own attention, the rest is what a FLUX block passes to it."""
        self.was_reached = True
        if self.is_dense or (self.patch.dense_blocks and _block_of(kwargs) in self.patch.dense_blocks):
            return self._previous(func, args, kwargs)
        q, k, v = args[:3]
        reason = self._why_not(q, k, v, args, kwargs)
        if reason is None:
            return self._windowed(q, k, v, args, kwargs)
        self.patch.notices.say(reason, f"{reason}; the window is not applied there.")
        return self._previous(func, args, kwargs)

    def _why_not(self, q: Tensor, k: Tensor, v: Tensor, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """Why the window cannot be applied to these tensors, or None."""
        if q.ndim != 4 or not _argument("skip_reshape", 6, args, kwargs):
            return (
                f"an attention call has queries of shape {tuple(q.shape)}, expected (batch, heads, tokens, head size)"
            )
        if k.shape != q.shape or v.shape != q.shape:
            return (
                f"an attention call has {q.shape[2]} queries but {k.shape[2]} keys and {v.shape[2]} values "
                "(another node changed them)"
            )
        if self.layout.reference < 0 or q.shape[2] != self.layout.length:
            return (
                f"a sequence has {q.shape[2]} tokens, but {self.layout.text} text, "
                f"{self.layout.grid[0]} x {self.layout.grid[1]} image and {self.layout.reference} reference tokens "
                "were expected (another node changed them)"
            )
        mask = _argument("mask", 4, args, kwargs)
        return None if mask is None else misfit(mask, q)

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        settings = self.patch.settings
        self.pairs += window_pairs_of(self.layout, settings.spec)
        mask = _argument("mask", 4, args, kwargs)
        out = clear_attention(
            q,
            k,
            v,
            grid=self.layout.grid,
            spec=settings.spec,
            reference_tokens=self.layout.reference,
            spatial_weight=self.patch.spatial_weights.get(_block_of(kwargs)),
            scale=settings.scale(q.shape[-1], self.frame),
            backend=settings.backend,
            bias=None if mask is None else self.masks.look_through(mask, self.layout),
            on_chunk=throw_exception_if_processing_interrupted,
        )
        if _argument("skip_output_reshape", 7, args, kwargs):
            return out
        return out.transpose(1, 2).flatten(2)

    def _previous(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The attention that was there before this node, with the scale that the node asks for."""
        q = args[0]
        self.pairs += q.shape[-2] * args[1].shape[-2]
        head_dim = q.shape[-1] if q.ndim == 4 else q.shape[-1] // args[3]
        factor = self.patch.settings.scale(head_dim, self.frame) * head_dim**0.5
        if factor != 1.0:
            args = (q * factor, *args[1:])
        if self.previous is not None:
            return self.previous(func, *args, **kwargs)
        return func(*args, **kwargs)


def _argument(name: str, position: int, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An argument of the host's ``optimized_attention``, given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name)


def _block_of(kwargs: dict[str, Any]) -> tuple[str | None, int | None]:
    """Which block an attention call belongs to, as the host counts them."""
    options = kwargs.get("transformer_options") or {}
    return options.get("block_type"), options.get("block_index")


def _is_within(settings: ClearSettings, sampling: Any, sigma: Tensor) -> bool:
    """Whether a noise level (B,) lies in the part of the sampling that has the window, both ends included.

    Source: ``model_sampling.percent_to_sigma``, compared as ``comfy.controlnet.ControlBase`` does.
    """
    is_late_enough = settings.start_percent <= 0 or not sigma[0] > sampling.percent_to_sigma(settings.start_percent)
    return is_late_enough and (
        settings.end_percent >= 1 or not sigma[0] < sampling.percent_to_sigma(settings.end_percent)
    )


def _tokens(latent: Tensor) -> int:
    """Image tokens of one latent."""
    height, width = token_grid(*latent.shape[-2:])
    return height * width
