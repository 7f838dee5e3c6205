"""The wrapper around each call of the model, which gives it a window and a state of its own.

Source: ``comfy.patcher_extension.WrappersMP.APPLY_MODEL``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....clear_core.dense_blocks import BlockId
from ....clear_core.families import ModelShape
from ....clear_core.layout import token_grid
from ....clear_core.settings import ClearSettings
from ....clear_core.weights import ClearFile
from .attention_form import Inputs
from .attention_override import OVERRIDE, WindowCall
from .bypassed import bypassed_sentence
from .call_arguments import Arguments
from .call_counter import current_counter
from .family_table import FLUX_ROW, HostFamily
from .host_sparse import RULE as SPARSE_RULE
from .host_sparse import is_host_sparse
from .notices import Notices
from .rope_embedder import say_not_stretched, stretched
from .sampling_range import is_in_range
from .sequence import is_image
from .strip_part import KEY as STRIP
from .tile_frame import KEY as FRAME_PART


@dataclass(frozen=True, eq=False)
class WindowPatch:
    """The wrapper that one CLEAR node adds to its clone of the model.

    Later clones and threads share it, so it never changes.

    Attributes:
        settings: As set on the node.
        shape: The model's.
        host: Its family in the host.
        spatial_weights: (d, d) pooling weights by block; a block that is not in it pools by the mean.
        file: The distilled weights in use, or None.
        strength: Share of them, 0 to 1.
        changes: What the weights file holds, kept so that other clones share it.
        remarks: Sentences about the weights, for the texts about the model.
        weight_patches: Entries of this node in ``ModelPatcher.patches``, by key; a later CLEAR node removes them.
        notices: Log lines, each once per node.
    """

    settings: ClearSettings
    shape: ModelShape
    host: HostFamily = FLUX_ROW
    spatial_weights: Mapping[BlockId, Tensor] = field(default_factory=dict[BlockId, Tensor])
    file: ClearFile | None = None
    strength: float = 1.0
    changes: Mapping[str, object] = field(default_factory=dict[str, object])
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
        """Run one call of the model with the window for this latent's grid. x: (B, C, H, W) or (B, C, 1, H, W)."""
        transformer_options = transformer_options or {}
        refusal = self.refusal(x, extra)
        if refusal is not None:
            self.notices.log_once(refusal, f"{refusal}; the window is not applied.")
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        form, grid, inner = self.host.attention, self.grid_of(x), executor.class_obj.diffusion_model
        text = 0 if c_crossattn is None else c_crossattn.shape[1]
        part = transformer_options.get(FRAME_PART)
        call = WindowCall(
            self,
            form.planned(grid, text, form.beside(inner, grid, extra)),
            part.grid if part else grid,
            transformer_options.get(OVERRIDE),
            self.is_in_range(executor.class_obj.model_sampling, t),
            transformer_options.get(STRIP),
            form,
        )

        if is_host_sparse(call.previous):
            self.notices.log_once("sparse", SPARSE_RULE)

        # Set in dense calls too: the host's compile nodes drop guards on transformer_options, so code that was compiled
        # without the override would never have windows.
        options = transformer_options.copy()
        options[OVERRIDE] = call.attend
        # Names of blocks that an earlier call left there would be taken for those of this one.
        for name in ("block_type", "block_index"):
            options.pop(name, None)
        patches = options.get("patches", {})
        options["patches"] = {**patches, "post_input": [*patches.get("post_input", ()), call.observe_input]}
        stretch = call.effective.stretch
        say_not_stretched(stretch, inner, self.notices, self.host.embedder)
        with stretched(stretch, t):
            out = executor(x, t, c_concat, c_crossattn, control, options, **extra)
        counter = current_counter()
        if call.was_reached and counter:
            counter.add(out.shape[0], call.whole.length, call.pairs, call.words)
        # A cache (EasyCache) skips the model in some calls, but never in the first of a run; packs with a forward of
        # their own skip it from the first call on.
        if not call.was_reached and not (counter and counter.calls):
            self.notices.log_once("bypassed", bypassed_sentence(inner))
        return out

    def refusal(self, x: Tensor, inputs: Inputs) -> str | None:
        """Why windows would cut a call apart, or None."""
        for keyword, why in self.host.attention.cut_apart.items():
            if inputs.get(keyword) is not None:
                return why
        if x.ndim == 5 and x.shape[2] > 1:
            return (
                f"the latent has {x.shape[2]} frames (a video, or the layers of a picture), and windows are for single "
                "pictures"
            )
        if not is_image(x.shape):
            return f"the latent has shape {tuple(x.shape)}, expected (batch, channels, height, width)"
        return None

    def grid_of(self, latent: Tensor) -> tuple[int, int]:
        """(h, w) in tokens of a latent (..., H, W)."""
        height, width = latent.shape[-2:]
        return token_grid(height, width, self.shape.family.token_cells)

    def is_in_range(self, sampling: Any, sigma: Tensor) -> bool:
        """Whether windows are active at a noise level, of a batch (B,), of the model's ``model_sampling``."""
        return is_in_range(sampling, sigma, self.settings.start_percent, self.settings.end_percent)
