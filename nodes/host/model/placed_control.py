"""A FLUX ControlNet without windows, in a tile: its image tokens have the tile's position in the frame.

Source: ``comfy.ldm.flux.controlnet.ControlNetFlux``, which embeds positions by itself; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import copy
from typing import Any

from comfy.ldm.flux.controlnet import ControlNetFlux
from torch import Tensor

from ....clear_core.layout import SequenceLayout, token_grid
from ....clear_core.rope import NOT_STRETCHED
from .rope_embedder import PositionEmbedder, positions
from .tile_frame import FramePart


class PlacedControlModel:
    """Replaces the model of a FLUX ControlNet in the calls of one tile; only the positions differ.

    Args:
        model: Shared with every other user of the ControlNet; only read.
        part: The tile.
    """

    def __init__(self, model: ControlNetFlux, part: FramePart):
        self.model = model
        self.part = part
        # A shallow copy shares all weights. Its own attribute is found before the submodule of that name.
        self.view = copy.copy(model)
        vars(self.view)["pe_embedder"] = PositionEmbedder(model.pe_embedder)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "model"), name)

    def __call__(self, x: Tensor, *args: Any, context: Tensor, **inputs: Any) -> dict[str, Any]:
        """The residuals by block for a latent x: (B, C, H, W)."""
        height, width = x.shape[-2:]
        layout = SequenceLayout(context.shape[1], token_grid(height, width, self.model.patch_size))
        with positions(
            stretch=NOT_STRETCHED, layout=layout, part=self.part, rope_options=None, references_follow=False
        ):
            return self.view(x, *args, context=context, **inputs)
